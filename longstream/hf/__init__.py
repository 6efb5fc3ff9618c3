"""HGRN2 for transformers.

Importing it makes `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the ``model_type`` "hgrn2".
"""

import logging

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from longstream.hf.cache import RecurrentCache as RecurrentCache
from longstream.hf.configuration import HGRN2Config as HGRN2Config
from longstream.hf.convert import checkpoint_transforms
from longstream.hf.convert import from_fla as from_fla
from longstream.hf.convert import to_fla as to_fla
from longstream.hf.modeling import HGRN2ForCausalLM as HGRN2ForCausalLM
from longstream.hf.modeling import HGRN2Model as HGRN2Model
from longstream.hf.modeling import HGRN2PreTrainedModel as HGRN2PreTrainedModel


def register() -> None:
    """Make the Auto classes of transformers use these classes for "hgrn2", whoever had registered it before.

    Importing the package does it; call it again where another package, such as fla, has been imported later.
    """
    name = HGRN2Config.model_type
    if name in CONFIG_MAPPING and CONFIG_MAPPING[name] is not HGRN2Config:
        before = CONFIG_MAPPING[name]
        logging.getLogger(__name__).warning(
            "longstream.hf: model_type %r now loads longstream's classes, not those of %s", name, before.__module__
        )
    AutoConfig.register(name, HGRN2Config, exist_ok=True)
    AutoModel.register(HGRN2Config, HGRN2Model, exist_ok=True)
    AutoModelForCausalLM.register(HGRN2Config, HGRN2ForCausalLM, exist_ok=True)
    register_checkpoint_conversion_mapping(name, checkpoint_transforms(), overwrite=True)


register()

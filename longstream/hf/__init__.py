"""longstream's models for transformers.

Importing it makes `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know three ``model_type``s: "hgrn" and "hgrn2",
with flash-linear-attention's fields and names, and "longstream", which is any `longstream.ModelConfig`.
"""

import logging

from transformers import CONFIG_MAPPING, AutoConfig, AutoModel, AutoModelForCausalLM
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from longstream.hf.cache import RecurrentCache as RecurrentCache
from longstream.hf.configuration import LongstreamConfig as LongstreamConfig
from longstream.hf.configuration_hgrn import HGRN2Config as HGRN2Config
from longstream.hf.configuration_hgrn import HGRNConfig as HGRNConfig
from longstream.hf.convert import MIXERS, loading_transforms
from longstream.hf.convert import from_fla as from_fla
from longstream.hf.convert import to_fla as to_fla
from longstream.hf.modeling import HGRN2ForCausalLM as HGRN2ForCausalLM
from longstream.hf.modeling import HGRN2Model as HGRN2Model
from longstream.hf.modeling import HGRNForCausalLM as HGRNForCausalLM
from longstream.hf.modeling import HGRNModel as HGRNModel
from longstream.hf.modeling import LongstreamForCausalLM as LongstreamForCausalLM
from longstream.hf.modeling import LongstreamModel as LongstreamModel
from longstream.hf.pretrained import LongstreamPreTrainedModel as LongstreamPreTrainedModel

_CLASSES = (
    (HGRNConfig, HGRNModel, HGRNForCausalLM),
    (HGRN2Config, HGRN2Model, HGRN2ForCausalLM),
    (LongstreamConfig, LongstreamModel, LongstreamForCausalLM),
)


def register() -> None:
    """Make the Auto classes of transformers use these classes for their types, whoever had registered them before.

    Importing the package does it; call it again where another package, such as fla, has been imported later.
    """
    for config, model, causal_lm in _CLASSES:
        name = config.model_type
        if name in CONFIG_MAPPING and CONFIG_MAPPING[name] is not config:
            before = CONFIG_MAPPING[name]
            logging.getLogger(__name__).warning(
                "longstream.hf: model_type %r now loads longstream's classes, not those of %s", name, before.__module__
            )
        AutoConfig.register(name, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
        if name in MIXERS:
            register_checkpoint_conversion_mapping(name, loading_transforms(name), overwrite=True)


register()

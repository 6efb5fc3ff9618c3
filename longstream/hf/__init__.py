"""longstream's models for transformers.

Importing it makes `AutoConfig`, `AutoModel`, `AutoModelForCausalLM` and `AutoModelForSequenceClassification` know four
``model_type``s: "hgrn" and "hgrn2", with flash-linear-attention's fields and names, "hyenadna", with those of its
checkpoints and a tokenizer for `AutoTokenizer`, and "longstream", which is any `longstream.ModelConfig`.
"""

import logging

from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from longstream.hf.cache import RecurrentCache as RecurrentCache
from longstream.hf.classification import HGRN2ForSequenceClassification as HGRN2ForSequenceClassification
from longstream.hf.classification import HGRNForSequenceClassification as HGRNForSequenceClassification
from longstream.hf.classification import LongstreamForSequenceClassification as LongstreamForSequenceClassification
from longstream.hf.configuration import LongstreamConfig as LongstreamConfig
from longstream.hf.configuration_hgrn import HGRN2Config as HGRN2Config
from longstream.hf.configuration_hgrn import HGRNConfig as HGRNConfig
from longstream.hf.configuration_hyenadna import HyenaDNAConfig as HyenaDNAConfig
from longstream.hf.convert import MIXERS, loading_transforms
from longstream.hf.convert import from_fla as from_fla
from longstream.hf.convert import to_fla as to_fla
from longstream.hf.convert_hyenadna import from_hyenadna as from_hyenadna
from longstream.hf.convert_hyenadna import to_hyenadna as to_hyenadna
from longstream.hf.dna_tokenizer import HyenaDNATokenizer as HyenaDNATokenizer
from longstream.hf.modeling import HGRN2ForCausalLM as HGRN2ForCausalLM
from longstream.hf.modeling import HGRN2Model as HGRN2Model
from longstream.hf.modeling import HGRNForCausalLM as HGRNForCausalLM
from longstream.hf.modeling import HGRNModel as HGRNModel
from longstream.hf.modeling import LongstreamForCausalLM as LongstreamForCausalLM
from longstream.hf.modeling import LongstreamModel as LongstreamModel
from longstream.hf.modeling_hyenadna import HyenaDNAForCausalLM as HyenaDNAForCausalLM
from longstream.hf.modeling_hyenadna import HyenaDNAForSequenceClassification as HyenaDNAForSequenceClassification
from longstream.hf.modeling_hyenadna import HyenaDNAModel as HyenaDNAModel
from longstream.hf.pretrained import LongstreamPreTrainedModel as LongstreamPreTrainedModel

_CLASSES = (
    (HGRNConfig, HGRNModel, HGRNForCausalLM, HGRNForSequenceClassification),
    (HGRN2Config, HGRN2Model, HGRN2ForCausalLM, HGRN2ForSequenceClassification),
    (HyenaDNAConfig, HyenaDNAModel, HyenaDNAForCausalLM, HyenaDNAForSequenceClassification),
    (LongstreamConfig, LongstreamModel, LongstreamForCausalLM, LongstreamForSequenceClassification),
)


def register() -> None:
    """Make the Auto classes of transformers use these classes for their types, whoever had registered them before.

    Importing the package does it; call it again where another package, such as fla, has been imported later.
    """
    AutoTokenizer.register(HyenaDNAConfig, tokenizer_class=HyenaDNATokenizer, exist_ok=True)
    for config, model, causal_lm, classifier in _CLASSES:
        name = config.model_type
        if name in CONFIG_MAPPING and CONFIG_MAPPING[name] is not config:
            before = CONFIG_MAPPING[name]
            logging.getLogger(__name__).warning(
                "longstream.hf: model_type %r now loads longstream's classes, not those of %s", name, before.__module__
            )
        AutoConfig.register(name, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForCausalLM.register(config, causal_lm, exist_ok=True)
        AutoModelForSequenceClassification.register(config, classifier, exist_ok=True)
        if name in MIXERS:
            register_checkpoint_conversion_mapping(name, loading_transforms(name), overwrite=True)


register()

"""HyenaDNA under transformers: longstream's models with HyenaDNA's configuration and its names on disk."""

from dataclasses import replace
from typing import Any

from longstream.hf.classification import LongstreamForSequenceClassification
from longstream.hf.configuration import BaseConfig
from longstream.hf.configuration_hyenadna import HyenaDNAConfig
from longstream.hf.convert_hyenadna import DERIVED, accept_hyenadna_names, from_ours, transforms
from longstream.hf.modeling import LongstreamForCausalLM, LongstreamModel
from longstream.hf.pretrained import LongstreamPreTrainedModel


class HyenaDNAPreTrainedModel(LongstreamPreTrainedModel):
    """Loading and saving in HyenaDNA's layout.

    The positional features and windows of the filters are computed where a checkpoint lacks them. Of the frequencies,
    which are one tensor for all sines of a filter, any copy will do; copies that differ are refused.
    """

    config_class = HyenaDNAConfig
    _keys_to_ignore_on_load_missing = {DERIVED.pattern}

    def __init__(self, config: BaseConfig):
        super().__init__(config)
        self.register_load_state_dict_pre_hook(accept_hyenadna_names)
        if not self.config.train_freq:  # then upstream it is no tensor of the model, but a constant
            self._keys_to_ignore_on_load_missing = {DERIVED.pattern, r"\.filter\.frequency$"}
            self._keys_to_ignore_on_save = [*self._fix_frequencies()]

    def _fix_frequencies(self) -> list[str]:
        """Leave the frequencies out of training, where they are constants; their names."""
        named = [(name, p) for name, p in self.named_parameters() if name.endswith(".filter.frequency")]
        for _, frequency in named:
            frequency.requires_grad_(self.config.train_freq)
        return [name for name, _ in named]

    @staticmethod
    def _load_pretrained_model(  # type: ignore[override]
        model: Any, state_dict: Any, checkpoint_files: list[str] | None, load_config: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """The table depends on the configuration, so that it cannot be registered for the type."""
        table = [*(load_config.weight_mapping or ()), *transforms(model.config)]
        info, index = LongstreamPreTrainedModel._load_pretrained_model(
            model, state_dict, checkpoint_files, replace(load_config, weight_mapping=table), *args, **kwargs
        )
        if info.conversion_errors:
            copies = [", ".join(from_ours(name, model.config)) for name in sorted(info.conversion_errors)]
            raise ValueError(
                f"{type(model).__name__}.from_pretrained: tensors that are one in the model must be equal in the file, "
                f"got different {'; '.join(copies)}"
            )
        return info, index

    @staticmethod
    def _finalize_model_loading(model: Any, load_config: Any, loading_info: Any) -> Any:  # type: ignore[override]
        info = LongstreamPreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        model._fix_frequencies()  # a parameter that is not in the file has been made anew
        return info


class HyenaDNAModel(HyenaDNAPreTrainedModel, LongstreamModel):
    """HyenaDNA without a head; see `LongstreamModel`."""


class HyenaDNAForCausalLM(HyenaDNAPreTrainedModel, LongstreamForCausalLM):
    """HyenaDNA as a language model; see `LongstreamForCausalLM`. It generates with a state; upstream has none."""

    _model_class = HyenaDNAModel


class HyenaDNAForSequenceClassification(HyenaDNAPreTrainedModel, LongstreamForSequenceClassification):
    """HyenaDNA as a classifier of the last token that is not a pad; see `LongstreamForSequenceClassification`."""

    _model_class = HyenaDNAModel

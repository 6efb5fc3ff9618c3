"""Loading, saving and initialization of every model under transformers."""

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from longstream.hf._formats import refuse_other_formats, refuse_other_names
from longstream.hf._misfits import describe_absence, refuse_misfits
from longstream.hf.configuration import LongstreamConfig
from longstream.hf.convert import name_in_fla, saving_transforms

if TYPE_CHECKING:
    from longstream.hf.modeling import LongstreamModel

logger = logging.getLogger(__name__)


class LongstreamPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization."""

    config_class = LongstreamConfig
    config: Any
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _input_embed_layer = "embeddings"
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _is_stateful = False  # transformers asks it for one thing, whether tokens can be taken back: RecurrentCache.crop
    _supports_context_parallel = False  # the state is not passed between ranks
    _head = "lm_head.weight"  # may be new, see _may_lack_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # While this runs transformers guards torch.nn.init, so that what was loaded is left alone; but some modules
        # write to their tensors directly, and Hyena's filters to those of their parts too.
        parts = getattr(module, "keeps_own_init", False)
        tensors = [*module.parameters(parts), *module.buffers(parts)]
        loaded = [(tensor, tensor.clone()) for tensor in tensors if getattr(tensor, "_is_hf_initialized", False)]
        self._base().backbone.init_weights(module)
        for tensor, value in loaded:
            tensor.copy_(value)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, every_n_layers: int = 1
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)
        self._base().checkpoint_every = every_n_layers

    def _base(self) -> "LongstreamModel":
        return self.base_model  # type: ignore[return-value]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """transformers' from_pretrained, which takes fla's checkpoints; but what does not fit the model is an error.

        Weights are read from safetensors only: no file is ever unpickled. Without its head a checkpoint loads as a
        causal language model only where it is a base model's; the head is then new, and a warning says so.

        Raises:
            ValueError: a file is damaged or not of safetensors; or tensors are missing, which transformers would fill
                with random numbers, spare or misshapen (unless ignore_mismatched_sizes). All of them are named.
            OSError: there is no such folder or no file of weights in it, and no network or no such name on the hub.
        """
        source = f"{cls.__name__}.from_pretrained: {pretrained_model_name_or_path}"
        kwargs["use_safetensors"] = kwargs.get("use_safetensors") is not False  # None would mean pickles, if need be
        try:
            refuse_other_formats(source, pretrained_model_name_or_path, kwargs)
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(f"{source}: a safetensors file is cut short or damaged: {error}") from error
        except OSError as error:
            if pretrained_model_name_or_path is None or os.path.exists(pretrained_model_name_or_path):
                raise
            absence = describe_absence(pretrained_model_name_or_path, error)
            raise OSError(f"{source}: {absence}") from error
        model, info = loaded
        if getattr(model, "_hf_peft_config_loaded", False):  # then this is of the adapter; the model's is seen to below
            refuse_misfits(f"{source}: the adapter", info["missing_keys"], info["unexpected_keys"])
        return loaded if output_loading_info else model

    @staticmethod
    def _finalize_model_loading(model: "LongstreamPreTrainedModel", load_config: Any, loading_info: Any) -> Any:
        """transformers' own; then what does not fit is refused at once, where it would stop at misshapen tensors."""

        def in_file(name: str) -> str:
            return name_in_fla(name, model.config)

        patient = replace(load_config, ignore_mismatched_sizes=True)
        info = PreTrainedModel._finalize_model_loading(model, patient, loading_info)
        source = f"{type(model).__name__}.from_pretrained: {load_config.pretrained_model_name_or_path}"
        is_base = vars(model).pop("_loaded_a_base_model", False)
        is_base = is_base or list(model.config.architectures or ()) == [type(model.base_model).__name__]
        missing, spare = ({in_file(name) for name in names} for names in (info.missing_keys, info.unexpected_keys))
        if has_new_head := model._head in missing and model._may_lack_head(is_base):
            missing.remove(model._head)
        if model.base_model is model:
            spare -= {"lm_head.weight", "score.weight"}
        misshapen: Any = () if load_config.ignore_mismatched_sizes else info.mismatched_keys
        wrong = [(in_file(name), got, wanted) for name, got, wanted in misshapen]
        refuse_misfits(f"{source}: expected a whole {type(model).__name__}", missing, spare, wrong)
        if has_new_head:
            kind = "is a base model" if is_base else "has another head"
            logger.warning("%s %s: %s is new and untrained", source, kind, model._head)
        return info

    @staticmethod
    def _load_pretrained_model(  # type: ignore[override]
        model: "LongstreamPreTrainedModel",
        state_dict: Any,
        checkpoint_files: list[str] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """transformers' own, which would unpickle a file of another name; and a look at the names of the tensors."""
        refuse_other_names(f"{type(model).__name__}.from_pretrained", checkpoint_files or ())
        info, index = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        if "lm_head.weight" in info.missing_keys:
            files = checkpoint_files or ()
            parts = [state_dict] if state_dict is not None else [load_state_dict(file, "meta") for file in files]
            heads = ("model.", "hyena.")  # what the names in a file begin with where there is a head
            vars(model)["_loaded_a_base_model"] = not any(name.startswith(heads) for part in parts for name in part)
        return info, index

    def _may_lack_head(self, is_base: bool) -> bool:
        """Whether a head that the file lacks is made anew; is_base: the file is a base model's."""
        return is_base

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """transformers' save_pretrained; the tensors of HGRN and HGRN2 get fla's names and shapes."""
        # transformers would reverse only those rows of the table that the loaded file made use of, and of each name the
        # last one, whatever the layer. A quantized model's own come after ours: they change what ours have left.
        loaded = getattr(self, "_weight_conversions", None)
        quantized = loaded if getattr(self, "hf_quantizer", None) is not None else None
        self._weight_conversions = [*(quantized or ()), *saving_transforms(self.config)]
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self._weight_conversions = loaded

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """transformers' own. Where the configuration knows the padding of its vocabulary, that padding is kept.

        Then config.vocab_size becomes new_num_tokens, and pad_to_multiple_of the new vocab_multiple; in fla's format
        padding is part of the vocabulary.
        """
        config = self.config
        changes = new_num_tokens is not None or pad_to_multiple_of is not None
        if not changes or not hasattr(config, "vocab_multiple"):
            return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        vocab_size = config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = config.vocab_multiple if pad_to_multiple_of is None else pad_to_multiple_of
        embeddings = super().resize_token_embeddings(vocab_size, multiple, mean_resizing)
        config.vocab_size, config.vocab_multiple = vocab_size, multiple
        return embeddings

"""Loading, saving and initialization of every model under transformers."""

import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_utils import load_state_dict

from longstream.hf._formats import refuse_other_formats, refuse_other_names
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
    _is_stateful = True  # transformers then refuses assisted generation, which takes tokens back
    _supports_context_parallel = False  # the state is not passed between ranks

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
        """transformers' from_pretrained, which takes fla's checkpoints; but tensors that are missing are an error.

        Weights are read from safetensors only: no file is ever unpickled. Without its head a checkpoint loads as a
        causal language model only where it is a base model's; the head is then new, and a warning says so.

        Raises:
            ValueError: a file is damaged or not of safetensors, or the checkpoint lacks tensors of the model, which
                transformers would fill with random numbers.
            OSError: there is no file of weights.
        """
        source = f"{cls.__name__}.from_pretrained: {pretrained_model_name_or_path}"
        refuse_other_formats(source, pretrained_model_name_or_path, kwargs)
        kwargs["use_safetensors"] = True  # transformers' None means pytorch_model.bin where there is nothing else
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(f"{source}: a safetensors file is cut short or damaged: {error}") from error
        model, info = loaded
        is_base = vars(model).pop("_loaded_a_base_model", False)
        is_base = is_base or list(model.config.architectures or ()) == [type(model.base_model).__name__]
        missing = sorted(name_in_fla(name, model.config) for name in info["missing_keys"])
        if getattr(model, "_hf_peft_config_loaded", False):
            missing = []  # an adapter's file holds the adapter
        has_new_head = is_base and "lm_head.weight" in missing
        if has_new_head:
            missing.remove("lm_head.weight")
        if missing:
            some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"{source}: expected a whole {cls.__name__}, got one without {len(missing)} tensors: {some}"
            )
        if has_new_head:
            logger.warning("%s is a base model: lm_head.weight is new and untrained", source)
        return loaded if output_loading_info else model

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
            vars(model)["_loaded_a_base_model"] = not any(name.startswith("model.") for part in parts for name in part)
        return info, index

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
        if not changes or not isinstance(config, LongstreamConfig):
            return super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        vocab_size = config.vocab_size if new_num_tokens is None else new_num_tokens
        multiple = config.vocab_multiple if pad_to_multiple_of is None else pad_to_multiple_of
        embeddings = super().resize_token_embeddings(vocab_size, multiple, mean_resizing)
        config.vocab_size, config.vocab_multiple = vocab_size, multiple
        return embeddings

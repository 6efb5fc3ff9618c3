"""HGRN2 under transformers: `longstream.models.Backbone` behind the surface of a `PreTrainedModel`.

Over 300 lines: transformers wants the base model, the head and generation's hooks side by side, each with its errors.
"""

import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME
from transformers.utils.generic import can_return_tuple
from transformers.utils.hub import cached_file

from longstream.hf.cache import RecurrentCache
from longstream.hf.configuration import HGRN2Config
from longstream.hf.convert import accept_fla_names, name_in_fla
from longstream.models import Backbone, Block, State
from longstream.models.heads import check_ids

logger = logging.getLogger(__name__)


class HGRN2PreTrainedModel(PreTrainedModel):
    """Loading, saving and initialization."""

    config: HGRN2Config
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _input_embed_layer = "embeddings"
    _no_split_modules = ["Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _is_stateful = True  # transformers then refuses assisted generation, which takes tokens back
    _supports_context_parallel = False  # the state is not passed between ranks

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # transformers guards torch.nn.init while this runs: what was loaded is left alone.
        self._base().backbone.init_weights(module)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = checkpoint, every_n_layers: int = 1
    ) -> None:
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, every_n_layers)
        self._base().checkpoint_every = every_n_layers

    def _base(self) -> "HGRN2Model":
        base = self.base_model
        assert isinstance(base, HGRN2Model)
        return base

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
        _refuse_other_formats(source, pretrained_model_name_or_path, kwargs)
        kwargs["use_safetensors"] = True  # transformers' None means pytorch_model.bin where there is nothing else
        try:
            loaded: Any = super().from_pretrained(
                pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
            )
        except SafetensorError as error:
            raise ValueError(f"{source}: a safetensors file is cut short or damaged: {error}") from error
        model, info = loaded
        is_base = vars(model).pop("_loaded_a_base_model", False)
        is_base = is_base or list(model.config.architectures or ()) == [HGRN2Model.__name__]
        missing = sorted(map(name_in_fla, info["missing_keys"]))
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
        model: "HGRN2PreTrainedModel", state_dict: Any, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """transformers' own, which would unpickle a file of another name; and a look at the names of the tensors."""
        _refuse_other_names(f"{type(model).__name__}.from_pretrained", checkpoint_files or ())
        info, index = PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)
        if "lm_head.weight" in info.missing_keys:
            files = checkpoint_files or ()
            parts = [state_dict] if state_dict is not None else [load_state_dict(file, "meta") for file in files]
            vars(model)["_loaded_a_base_model"] = not any(name.startswith("model.") for part in parts for name in part)
        return info, index

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """transformers' save_pretrained; the tensors get fla's names and shapes."""
        if getattr(self, "hf_quantizer", None) is None:
            # transformers would reverse only the rows of the table that the loaded file made use of.
            self._weight_conversions = None
        super().save_pretrained(save_directory, *args, **kwargs)


class HGRN2Model(HGRN2PreTrainedModel):
    """Embeddings and `longstream.models.Backbone`, without a head.

    The pad token's embedding is trained like any other: the mask says what is a pad, and the end of a text may be the
    same token.
    """

    def __init__(self, config: HGRN2Config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.backbone = Backbone(config.to_model_config())
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        self.register_load_state_dict_pre_hook(accept_fla_names)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: RecurrentCache | State | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm, and the state.

        Args:
            input_ids:       (B, T) int; or inputs_embeds (B, T, hidden_size) in its place.
            attention_mask:  (B, T), or (B, past + T) with a cache. 0 is a pad, which is as if not there, wherever it
                             stands: outputs on it are 0 and the state is that of the tokens. Not with cu_seqlens.
            past_key_values: `RecurrentCache`, which the call carries on and returns, or a `longstream.models.State` to
                             start from.
            use_cache:       whether to carry the state on and return it; None is yes with past_key_values, else
                             config.use_cache, and no in training.
            cu_seqlens:      (N + 1,) boundaries of N sequences packed in one row (B = 1); each resets the state.
                             transformers' cu_seq_lens_q is taken for it.
        Raises:
            ValueError: shapes disagree, ids are out of range, or the state is another model's.
            TypeError: an unknown argument, or another kind of cache.
        """
        name = type(self).__name__
        cu_seqlens = _read_packing(name, cu_seqlens, kwargs)
        if output_attentions:
            raise ValueError(f"{name}: output_attentions must be False, got True: there are no attention maps")
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise ValueError(f"{name}: expected one of input_ids and inputs_embeds, got {got}")
        if input_ids is not None:
            check_ids(name, input_ids, self.embeddings.num_embeddings, "input_ids")
            inputs_embeds = self.embeddings(input_ids.long())  # torch embeds only int32 and int64
        assert inputs_embeds is not None
        if use_cache is None:
            use_cache = past_key_values is not None or (self.config.use_cache and not self.training)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None

        cache = _as_cache(name, past_key_values)
        rows = inputs_embeds.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        if cache.batch_size not in (-1, rows):
            raise ValueError(
                f"{name}: past_key_values must have {rows} rows, one for each sequence, got {cache.batch_size}; "
                "for beams or num_return_sequences, past_key_values.batch_repeat_interleave(n) makes n of each"
            )
        y, state = self.backbone(
            inputs_embeds,
            cache.state,
            mask=_mask_of_new(name, attention_mask, inputs_embeds, cache.seq_length),
            cu_seqlens=cu_seqlens,
            run_block=self._run_checkpointed if self.gradient_checkpointing and self.training else None,
            hidden_states=hidden_states,
        )
        if use_cache:
            cache.state = state
            cache.seq_length += inputs_embeds.shape[1] if cu_seqlens is None else _longest(cu_seqlens)
        return BaseModelOutputWithPast(
            last_hidden_state=y,
            past_key_values=cache if use_cache else None,
            hidden_states=None if hidden_states is None else tuple(hidden_states),  # type: ignore[arg-type]
        )

    def _run_checkpointed(self, block: Block, x: Tensor, state: Any, *, cu_seqlens: Any, lower_bound: Any) -> Any:
        if list(self.backbone.layers).index(block) % self.checkpoint_every:
            return block(x, state, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        if state is None:
            rows = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            state = block.init_state(rows, device=x.device, dtype=x.dtype)

        # Tensors go in and out one by one: only there does the reentrant kind of checkpoint follow gradients.
        def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            layer_state = type(state)(*tensors[: len(state)])
            limit = None if lower_bound is None else type(lower_bound)(*tensors[len(state) :])
            y, layer_state = block(x, layer_state, cu_seqlens=cu_seqlens, lower_bound=limit)
            return y, *layer_state

        y, *layer_state = self._gradient_checkpointing_func(run, x, *state, *(lower_bound or ()))
        return y, type(state)(*layer_state)


class HGRN2ForCausalLM(HGRN2PreTrainedModel, GenerationMixin):
    """`HGRN2Model` with a linear head over the vocabulary, for `generate` and `Trainer`."""

    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: HGRN2Config):
        super().__init__(config)
        self.model = HGRN2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_function = causal_lm_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: RecurrentCache | State | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, the loss where there are labels, and the state.

        Args:
            labels:         (B, T) ids, shifted inside; -100 does not count, nor does a packed sequence's first token.
            logits_to_keep: make logits only of this many last positions, or of the positions in a tensor; 0 is all.
            kwargs:         num_items_in_batch (divides the summed loss), ignore_index and shift_labels of transformers'
                            losses. The other arguments are described at `HGRN2Model.forward`.
        """
        loss_names = ("num_items_in_batch", "ignore_index", "shift_labels")
        loss_kwargs = {key: kwargs.pop(key) for key in loss_names if key in kwargs}
        cu_seqlens = _read_packing(type(self).__name__, cu_seqlens, kwargs)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            cu_seqlens=cu_seqlens,
            return_dict=True,
        )
        y = outputs.last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(y[:, kept])
        loss = None
        if labels is not None:
            if labels.shape != y.shape[:2] or logits.shape[1] != y.shape[1]:
                raise ValueError(
                    f"{type(self).__name__}: labels must have shape {tuple(y.shape[:2])}, with logits_to_keep 0, got "
                    f"{tuple(labels.shape)} and {logits_to_keep}"
                )
            if labels.dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
                labels = labels.long()  # uint8 has no -100
            labels = _without_firsts(labels, cu_seqlens)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **loss_kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        inputs_embeds: Tensor | None = None,  # named, because transformers looks whether it is
        **kwargs: Any,
    ) -> dict[str, Any]:
        """What the next call of `forward` gets: the columns that the state has not seen."""
        if next_sequence_length is not None and next_sequence_length <= 0:
            width = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            raise ValueError(
                f"{type(self).__name__}.generate: input_ids must have more than the {width - next_sequence_length} "
                f"columns that past_key_values has seen, got {width}: give the whole text with at least one new token, "
                "or new tokens alone with an attention_mask for the whole text"
            )
        super_method: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        return super_method(input_ids, next_sequence_length, inputs_embeds=inputs_embeds, **kwargs)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # that is a cache of keys and values

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        super_method: Any = super()._prepare_cache_for_generation  # type: ignore[misc]
        result = super_method(generation_config, model_kwargs, *args, **kwargs)
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = RecurrentCache()  # here, not in forward: a prefill in chunks needs it
        return result


def causal_lm_loss(
    logits: Tensor,
    labels: Tensor,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
) -> Tensor:
    """transformers' ForCausalLMLoss, except that float64 logits stay float64."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if shift_labels is None:
        shift_labels = nn.functional.pad(labels, (0, 1), value=ignore_index)[:, 1:]
    target = shift_labels.reshape(-1).to(logits.device)
    return fixed_cross_entropy(logits.reshape(-1, vocab_size), target, num_items_in_batch, ignore_index)  # type: ignore[arg-type]


def _refuse_other_formats(source: str, path: Any, options: dict[str, Any]) -> None:
    """What from_pretrained is asked to read must be safetensors, by every way in which transformers finds files."""
    if options.get("use_safetensors") is False:
        raise ValueError(f"{source}: use_safetensors must be True, got False: only safetensors are read")
    if options.get("gguf_file") is not None:
        raise ValueError(f"{source}: gguf_file must be None, got {options['gguf_file']!r}: only safetensors are read")
    for weights in (
        options.get("transformers_weights"),
        getattr(options.get("config"), "transformers_weights", None),
    ):
        if weights is not None:
            _refuse_other_names(f"{source}: transformers_weights", [weights])
    if path is None:
        return
    subfolder = options.get("subfolder") or ""
    directory = Path(path, subfolder)
    if directory.is_dir():
        names = [file.name for file in directory.iterdir()]
        others = sorted(name for name in names if name.endswith((".bin", ".bin.index.json", ".pt", ".pth")))
        if others and not any(".safetensors" in name or name == "adapter_config.json" for name in names):
            raise FileNotFoundError(
                f"{source}: expected safetensors in the directory {directory}, got {others}: only safetensors are read"
            )
    elif os.path.isfile(os.path.join(subfolder, path)):  # transformers takes a file where it is given the config
        return _refuse_other_names(source, [os.fspath(path)])
    variant = options.get("variant")
    index_name = SAFE_WEIGHTS_INDEX_NAME.replace(".json", f".{variant}.json" if variant else ".json")
    download = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")
    index = cached_file(
        path,
        index_name,
        subfolder=subfolder,
        _raise_exceptions_for_missing_entries=False,
        **{key: options[key] for key in download if key in options},
    )
    if index is not None:
        shards = PretrainedConfig._dict_from_json_file(index)["weight_map"].values()
        _refuse_other_names(f"{source}: {index_name}", shards)


def _refuse_other_names(source: str, files: Iterable[str]) -> None:
    if others := sorted({file for file in files if not file.endswith(".safetensors")}):
        raise ValueError(f"{source}: expected files of safetensors, got {others}: only safetensors are read")


def _read_packing(name: str, cu_seqlens: Any, kwargs: dict[str, Any]) -> Any:
    """The boundaries of packed sequences, in our word or in transformers'; what else is in kwargs is refused."""
    theirs = kwargs.pop("cu_seq_lens_q", None)
    cu_seqlens = theirs if cu_seqlens is None else cu_seqlens
    if cu_seqlens is not None:  # DataCollatorWithFlattening says the same in these words too
        for key in ("cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids", "seq_idx"):
            kwargs.pop(key, None)
    unknown = sorted(key for key, value in kwargs.items() if value is not None)
    if "position_ids" in unknown:
        raise TypeError(f"{name}: position_ids means nothing here; for packed sequences give cu_seqlens")
    if unknown:
        raise TypeError(f"{name}: unknown arguments {unknown}")
    return cu_seqlens


def _as_cache(name: str, past_key_values: RecurrentCache | State | None) -> RecurrentCache:
    if past_key_values is None or isinstance(past_key_values, State):
        return RecurrentCache(past_key_values)
    if not isinstance(past_key_values, RecurrentCache):
        got = type(past_key_values).__name__
        raise TypeError(f"{name}: past_key_values must be a longstream.hf.RecurrentCache, a State or None, got {got}")
    return past_key_values


def _mask_of_new(name: str, attention_mask: Tensor | None, x: Tensor, past: int) -> Tensor | None:
    """The columns of the mask that belong to x (B, T, D)."""
    if attention_mask is None:
        return None
    B, T = x.shape[:2]
    if attention_mask.dim() != 2 or attention_mask.shape[0] != B or attention_mask.shape[1] not in (T, past + T):
        expected = f"({B}, {T})" + (f" or ({B}, {past + T})" if past else "")
        raise ValueError(f"{name}: attention_mask must have shape {expected}, got {tuple(attention_mask.shape)}")
    return attention_mask[:, attention_mask.shape[1] - T :]


def _without_firsts(labels: Tensor, cu_seqlens: Tensor | Sequence[int] | None) -> Tensor:
    """No target across a boundary: the logits before it are of another sequence."""
    if cu_seqlens is None:
        return labels
    firsts = torch.as_tensor(cu_seqlens, device=labels.device)[1:-1].long()
    return labels.index_fill(1, firsts[firsts < labels.shape[1]], -100)


def _longest(cu_seqlens: Tensor | Sequence[int]) -> int:
    return int(torch.as_tensor(cu_seqlens).diff().max())

"""`longstream.models.Backbone` behind the surface of a transformers model: a base model and a causal language model.

Those of HGRN and HGRN2 differ in nothing but their configuration and the names of their tensors on disk.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from longstream.hf._arguments import as_cache, longest, mask_of_new, read_packing, without_firsts
from longstream.hf._decode import step_natively, why_no_native_step
from longstream.hf._loss import causal_lm_loss
from longstream.hf.cache import RecurrentCache
from longstream.hf.configuration import BaseConfig
from longstream.hf.configuration_hgrn import HGRN2Config, HGRNConfig
from longstream.hf.convert import accept_fla_names
from longstream.hf.generation import RecurrentGenerationMixin
from longstream.hf.pretrained import LongstreamPreTrainedModel
from longstream.layers.state import NoState
from longstream.models import Backbone, Block, LanguageModel, State
from longstream.models.heads import check_ids


class LongstreamModel(LongstreamPreTrainedModel):
    """Embeddings and `longstream.models.Backbone`, without a head.

    The pad token's embedding is trained like any other: the mask says what is a pad, and the end of a text may be the
    same token.
    """

    def __init__(self, config: BaseConfig):
        super().__init__(config)
        model_config = config.to_model_config()
        self.embeddings = nn.Embedding(model_config.padded_vocab_size, model_config.hidden_size)
        self.dropout = nn.Dropout(model_config.embed_dropout)
        self.backbone = Backbone(model_config)
        self.gradient_checkpointing = False
        self.checkpoint_every = 1
        filters = [name for name, module in self.backbone.named_modules() if getattr(module, "keeps_own_init", False)]
        # Hyena's, where half precision, and int8 more so, merges time steps. Whoever quantizes matches from the start.
        self._keep_in_fp32_modules_strict = {f"backbone.{name}" for name in filters}
        self._keep_in_fp32_modules = {f"(model.)?backbone.{name}" for name in filters}
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
                             config.use_cache, and no in training. A model that looks both ways has no state.
            cu_seqlens:      (N + 1,) boundaries of N sequences packed in one row (B = 1); each resets the state.
                             transformers' cu_seq_lens_q is taken for it.
        Raises:
            ValueError: shapes disagree, ids are out of range, the state is another model's, or the text is longer than
                Hyena's filters.
            TypeError: an unknown argument, or another kind of cache.
        """
        name = type(self).__name__
        cu_seqlens = read_packing(name, cu_seqlens, kwargs)
        if output_attentions:
            raise ValueError(f"{name}: output_attentions must be False, got True: there are no attention maps")
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise ValueError(f"{name}: expected one of input_ids and inputs_embeds, got {got}")
        if input_ids is not None:
            check_ids(name, input_ids, self.config.vocab_size, "input_ids")
            inputs_embeds = self.embeddings(input_ids.long())  # torch embeds only int32 and int64
        assert inputs_embeds is not None
        if use_cache is None:
            use_cache = past_key_values is not None or (self.config.use_cache and not self.training)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states: list[Tensor] | None = [] if output_hidden_states else None

        cache = as_cache(name, past_key_values)
        rows = inputs_embeds.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
        if cache.batch_size not in (-1, rows):
            raise ValueError(
                f"{name}: past_key_values must have {rows} rows, one for each sequence, got {cache.batch_size}; "
                "for beams or num_return_sequences, past_key_values.batch_repeat_interleave(n) makes n of each"
            )
        x, mask = self.dropout(inputs_embeds), mask_of_new(name, attention_mask, inputs_embeds, cache.seq_length)
        options: dict[str, Any] = {"cu_seqlens": cu_seqlens, "hidden_states": hidden_states}
        if self.gradient_checkpointing and self.training:
            options["run_block"] = self._run_checkpointed
        use_cache = use_cache and self.backbone.causal
        if use_cache:
            y = cache.read(self.backbone, x, mask, **options)
            cache.seq_length += inputs_embeds.shape[1] if cu_seqlens is None else longest(cu_seqlens)
        else:
            y, _ = self.backbone(x, cache.state, mask=mask, **options)
        return BaseModelOutputWithPast(
            last_hidden_state=y,
            past_key_values=cache if use_cache else None,
            hidden_states=None if hidden_states is None else tuple(hidden_states),  # type: ignore[arg-type]
        )

    def _run_checkpointed(self, block: Block, x: Tensor, state: Any, *, cu_seqlens: Any, lower_bound: Any) -> Any:
        if list(self.backbone.layers).index(block) % self.checkpoint_every:
            return block(x, state, cu_seqlens=cu_seqlens, lower_bound=lower_bound)
        if state is None and block.causal:
            rows = x.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
            state = block.init_state(rows, device=x.device, dtype=x.dtype)
        kind, size = (NoState, 0) if state is None else (type(state), len(state))

        # Tensors go in and out one by one: only there does the reentrant kind of checkpoint follow gradients. More may
        # come out than went in: Hyena's state grows with the text.
        def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
            before = None if state is None else kind(*tensors[:size])
            limit = None if lower_bound is None else type(lower_bound)(*tensors[size:])
            y, after = block(x, before, cu_seqlens=cu_seqlens, lower_bound=limit)
            return y, *after

        y, *after = self._gradient_checkpointing_func(run, x, *(state or ()), *(lower_bound or ()))
        return y, kind(*after)


class LongstreamForCausalLM(LongstreamPreTrainedModel, RecurrentGenerationMixin):
    """`LongstreamModel` with a linear head over the vocabulary, for `generate` and `Trainer`.

    Where the vocabulary is padded (vocab_multiple of `longstream.ModelConfig`), logits and loss are over all rows of
    the embeddings, as HyenaDNA trains; `generate` sees only the logits of true tokens.

    Behind a cache, single tokens go through the native step of `longstream.stream` where there are no gradients: in
    float32, on a CPU, in evaluation mode, without hooks, adapters and autocast. It costs a packed copy of the weights,
    made with the first such token and again where the weights have changed.

    Attributes:
        decode_backend: "auto"; or "eager", the model's own step, which also frees that copy.
        decode_weights: of the native step: "float32", "bfloat16" or "int8". Prompts are always read in float32.

    Raises:
        ValueError: the model looks both ways.
    """

    decode_backend = "auto"
    decode_weights = "float32"
    _model_class: ClassVar[type[LongstreamModel]] = LongstreamModel
    _tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: BaseConfig):
        super().__init__(config)
        self.model = self._model_class(config)
        if not self.model.backbone.causal:
            raise ValueError(f"{type(self).__name__}: every layer must go from token to token, got one that does not")
        self.lm_head = nn.Linear(*reversed(self.model.embeddings.weight.shape), bias=False)
        self.loss_function = causal_lm_loss
        self.post_init()

    @property
    def language_model(self) -> LanguageModel:
        """The same modules as a `longstream.models.LanguageModel`."""
        inner = self.model
        return LanguageModel.of_parts(
            self.config.to_model_config(), inner.embeddings, inner.dropout, inner.backbone, self.lm_head
        )

    @property
    def decode_why_not(self) -> str | None:
        """Why single tokens do not go through the native step; None where they do."""
        return why_no_native_step(self)

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
        vocabulary_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, the loss where there are labels, and the state.

        Args:
            labels:          (B, T) ids, shifted inside; -100 does not count, nor does a packed sequence's first token.
            logits_to_keep:  make logits only of this many last positions, or of the positions in a tensor; 0 is all.
            vocabulary_only: leave out the logits that are only the padding of the vocabulary, as `generate` does.
            kwargs:          num_items_in_batch (divides the summed loss), ignore_index and shift_labels of
                             transformers' losses. The other arguments are described at `LongstreamModel.forward`.
        """
        loss_names = ("num_items_in_batch", "ignore_index", "shift_labels")
        loss_kwargs = {key: kwargs.pop(key) for key in loss_names if key in kwargs}
        cu_seqlens = read_packing(type(self).__name__, cu_seqlens, kwargs)
        plain = all(x is None for x in (inputs_embeds, labels, cu_seqlens)) and isinstance(logits_to_keep, int)
        shown = output_attentions or output_hidden_states or self.config.output_hidden_states
        if plain and not shown and input_ids is not None and use_cache is not False:
            logits = step_natively(self, input_ids, attention_mask, past_key_values)
            if logits is not None:
                if vocabulary_only:
                    logits = logits[..., : self.config.vocab_size]
                return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]
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
            labels = without_firsts(labels, cu_seqlens)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **loss_kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits[..., : self.config.vocab_size] if vocabulary_only else logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


class HGRNModel(LongstreamModel):
    """HGRN without a head; see `LongstreamModel`."""

    config_class = HGRNConfig


class HGRNForCausalLM(LongstreamForCausalLM):
    """HGRN as a language model; see `LongstreamForCausalLM`."""

    config_class = HGRNConfig
    _model_class = HGRNModel


class HGRN2Model(LongstreamModel):
    """HGRN2 without a head; see `LongstreamModel`."""

    config_class = HGRN2Config


class HGRN2ForCausalLM(LongstreamForCausalLM):
    """HGRN2 as a language model; see `LongstreamForCausalLM`."""

    config_class = HGRN2Config
    _model_class = HGRN2Model

"""`generate` of transformers over a recurrent state: what a call gets, candidates of an assistant, the longest text."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.candidate_generator import CandidateGenerator, PromptLookupCandidateGenerator

from longstream.hf.cache import RecurrentCache
from longstream.models import State
from longstream.models.generate import check_length


class RecurrentGenerationMixin(GenerationMixin):
    """transformers' `generate` for a causal language model whose cache is a `RecurrentCache`.

    Candidates of a smaller model (``assistant_model``) or of the text itself (``prompt_lookup_num_tokens``) are taken
    back by `RecurrentCache.crop`; as with any model of transformers, in batches of one row.
    """

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
        if next_sequence_length is None and kwargs.get("is_first_iteration"):
            next_sequence_length = self._unseen(input_ids, **kwargs)
        kwargs.pop("tokenizer", None)  # of stop_strings, which transformers hands on as if it were the model's
        super_method = self._theirs().prepare_inputs_for_generation
        inputs = super_method(input_ids, next_sequence_length, inputs_embeds=inputs_embeds, **kwargs)
        return inputs | {"vocabulary_only": True}

    def _theirs(self) -> Any:
        """transformers' own methods, whose types ask for a model of its own."""
        return super()

    @staticmethod
    def _unseen(
        input_ids: Tensor, past_key_values: Any = None, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> int | None:
        """Columns of the whole text that a cache has not seen: transformers forgets to cut them before candidates."""
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        is_whole = attention_mask is not None and attention_mask.shape[1] == input_ids.shape[1] > seen
        return input_ids.shape[1] - seen if seen and is_whole else None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # that is a cache of keys and values

    def _prepare_cache_for_generation(  # type: ignore[override]
        self, generation_config: Any, model_kwargs: dict[str, Any], mode: Any, batch_size: int, max_cache_length: int
    ) -> Any:
        self._check_length(generation_config, model_kwargs.get("attention_mask"), max_cache_length)
        if generation_config.assistant_early_exit is not None:
            raise ValueError(
                f"{type(self).__name__}.generate: assistant_early_exit must be None, got "
                f"{generation_config.assistant_early_exit}: the layers before the last have no head; give an "
                "assistant_model or prompt_lookup_num_tokens"
            )
        if isinstance(model_kwargs.get("past_key_values"), State):
            model_kwargs["past_key_values"] = RecurrentCache(model_kwargs["past_key_values"])
        if generation_config.is_assistant:  # of a model that counts positions and hands its own on
            model_kwargs.pop("position_ids", None)
        super_method = self._theirs()._prepare_cache_for_generation
        result = super_method(generation_config, model_kwargs, mode, batch_size, max_cache_length)
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = RecurrentCache()  # here, not in forward: a prefill in chunks needs it
            if generation_config.is_assistant:
                model_kwargs["past_key_values"].activate_past_recording()
        return result

    def _assisted_decoding(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        super_method = self._theirs()._assisted_decoding
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, RecurrentCache):
            return super_method(input_ids, *args, **kwargs)
        seen, mask = cache.get_seq_length(), kwargs.get("attention_mask")
        if seen and (seen >= input_ids.shape[1] or (mask is not None and mask.shape[1] != input_ids.shape[1])):
            raise ValueError(
                f"{type(self).__name__}.generate: with candidates, input_ids must be the whole text, the {seen} columns"
                f" that past_key_values has seen and at least one new token, got {input_ids.shape[1]} columns"
            )
        if seen and mask is None:  # by which `prepare_inputs_for_generation` knows a whole text
            kwargs["attention_mask"] = torch.ones_like(input_ids)
        was_recording = cache.is_recording_past()
        try:
            return super_method(input_ids, *args, **kwargs)
        finally:
            if not was_recording:
                cache.deactivate_past_recording()

    def _get_candidate_generator(self, generation_config: Any, *args: Any, **kwargs: Any) -> Any:
        super_method = self._theirs()._get_candidate_generator
        generator = super_method(generation_config, *args, **kwargs)
        if isinstance(generator, PromptLookupCandidateGenerator):
            return _UpToLength(generator, generation_config.max_length)
        return generator

    def _check_length(self, generation_config: Any, mask: Tensor | None, columns: int) -> None:
        """Refuse, before the first token, what would not fit into Hyena's filters; ``columns`` will have been read."""
        if mask is None:  # transformers leaves out one without pads
            width, pads = generation_config._mask_length, 0
        else:
            width, pads = mask.shape[1], int((mask == 0).sum(1).min())
        # max_length counts the columns that were given, which may be only what the state has not read.
        new = generation_config.max_new_tokens
        new = columns + 1 - width if new is None else new
        check_length(f"{type(self).__name__}.generate", self.model.backbone, width - pads, new)  # type: ignore[attr-defined]


class _UpToLength(CandidateGenerator):
    """Candidates that can still be part of the text: the model would read others, and Hyena has no room for them."""

    def __init__(self, generator: Any, max_length: int):
        self.generator, self.max_length = generator, max_length

    def get_candidates(self, input_ids: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        ids, logits = self.generator.get_candidates(input_ids, **kwargs)
        return ids[:, : max(self.max_length - 1, input_ids.shape[1])], logits

    def update_candidate_strategy(self, input_ids: Any, scores: Any, num_matches: int) -> None:
        self.generator.update_candidate_strategy(input_ids, scores, num_matches)

"""A linear classifier over the last token, on `LongstreamModel`, for `AutoModelForSequenceClassification`."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from longstream.hf.cache import RecurrentCache
from longstream.hf.configuration import BaseConfig
from longstream.hf.configuration_hgrn import HGRN2Config, HGRNConfig
from longstream.hf.modeling import HGRN2Model, HGRNModel, LongstreamModel
from longstream.hf.pretrained import LongstreamPreTrainedModel
from longstream.models import State


class LongstreamForSequenceClassification(LongstreamPreTrainedModel):
    """`LongstreamModel` with a linear head, ``score``, on each text's last token that is not a pad.

    config.num_labels classes, or one number where it is 1; the losses are transformers', by config.problem_type. A
    checkpoint of a base model or a language model loads with a new head, and a warning says so. A mixer that looks
    both ways is welcome.
    """

    _model_class: ClassVar[type[LongstreamModel]] = LongstreamModel
    _head = "score.weight"
    _keys_to_ignore_on_load_unexpected = {r"^lm_head\.weight$"}

    def __init__(self, config: BaseConfig):
        super().__init__(config)
        self.num_labels = int(config.num_labels or 0)
        self.model = self._model_class(config)
        self.score = nn.Linear(self.model.backbone.hidden_size, self.num_labels, bias=False)
        self.post_init()

    def _may_lack_head(self, is_base: bool) -> bool:
        return list(self.config.architectures or ()) != [type(self).__name__]

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
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, num_labels), the loss where there are labels, and, if asked for, the state.

        Without an attention_mask there are no pads, and the model reads every id; but the logits are still those of
        the last id that is not config.pad_token_id, as transformers and HyenaDNA take them.

        Args:
            labels:    (B,) int, (B,) or (B, num_labels) float; see transformers' ForSequenceClassificationLoss.
            use_cache: None is no, unless there are past_key_values.
            kwargs:    num_items_in_batch of transformers' losses. The others are of `LongstreamModel.forward`.
        """
        loss_kwargs = {key: kwargs.pop(key) for key in ("num_items_in_batch",) if key in kwargs}
        if kwargs.get("cu_seqlens") is not None or kwargs.get("cu_seq_lens_q") is not None:
            raise TypeError(f"{type(self).__name__}: cu_seqlens must be None: a row is one text")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            past_key_values=past_key_values,
            use_cache=past_key_values is not None if use_cache is None else use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
            **kwargs,
        )
        y = outputs.last_hidden_state
        last = self._last_tokens(y, input_ids, attention_mask)
        logits = self.score(y[torch.arange(y.shape[0], device=y.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config, **loss_kwargs)
        return SequenceClassifierOutputWithPast(
            loss=loss, logits=logits, past_key_values=outputs.past_key_values, hidden_states=outputs.hidden_states
        )

    def _last_tokens(self, y: Tensor, input_ids: Tensor | None, mask: Tensor | None) -> Tensor:
        """The column (B,) of each row's last token."""
        B, T = y.shape[:2]
        if T == 0:
            raise ValueError(f"{type(self).__name__}: input_ids must have a token in every row, got rows of length 0")
        pad = self.config.pad_token_id
        if mask is not None:
            is_token = mask[:, mask.shape[1] - T :] != 0
        elif input_ids is not None and pad is not None:
            is_token = input_ids != pad
        else:
            return torch.full((B,), T - 1, device=y.device)
        if y.device.type == "cpu" and not torch.compiler.is_compiling() and not is_token.any(1).all():
            row = int(is_token.any(1).int().argmin())
            raise ValueError(f"{type(self).__name__}: expected a token in every row, got only pads in row {row}")
        return (torch.arange(T, device=y.device) * is_token).argmax(1)


class HGRNForSequenceClassification(LongstreamForSequenceClassification):
    """HGRN as a classifier; see `LongstreamForSequenceClassification`."""

    config_class = HGRNConfig
    _model_class = HGRNModel


class HGRN2ForSequenceClassification(LongstreamForSequenceClassification):
    """HGRN2 as a classifier; see `LongstreamForSequenceClassification`."""

    config_class = HGRN2Config
    _model_class = HGRN2Model

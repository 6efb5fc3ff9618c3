"""HGRN and HGRN2 as flash-linear-attention (fla) 0.6.0 configures them."""

import logging
from typing import ClassVar

from transformers.configuration_utils import strict  # type: ignore[attr-defined]

from longstream.hf.configuration_fla import FlaConfig
from longstream.models import HGRN2Config as HGRN2MixerConfig
from longstream.models import HGRNConfig as HGRNMixerConfig

logger = logging.getLogger(__name__)


@strict
class HGRNConfig(FlaConfig):
    """An HGRN language model; see `FlaConfig` for what it shares with HGRN2.

    A ``num_heads`` of old checkpoints is dropped: it changed nothing. `longstream.models.HGRNConfig` is another class:
    the arguments of one layer. `to_model_config` makes one of this.

    Args:
        unit:            "real", or "complex" as in the paper.
        norm_first:      whether the mixer's norm, whose epsilon is norm_eps, comes before the output gate.
        gate_activation: of the output gate, "silu" or "sigmoid".
    """

    model_type = "hgrn"
    _legacy_keys: ClassVar[tuple[str, ...]] = (*FlaConfig._legacy_keys, "num_heads")
    _own: ClassVar[tuple[str, ...]] = (*FlaConfig._own, "unit", "norm_first", "gate_activation")
    _own_choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "unit": ("real", "complex"),
        "gate_activation": ("silu", "sigmoid"),
    }

    attn_mode: str = "fused_recurrent"
    expand_ratio: int | None = 1

    unit: str = "real"
    norm_first: bool = True
    gate_activation: str = "silu"

    def _check(self) -> None:
        super()._check()
        if self.expand_ratio is None or self.expand_ratio < 1:
            raise ValueError(f"HGRNConfig: expand_ratio must be >= 1, got {self.expand_ratio}")

    def _mixer(self) -> HGRNMixerConfig:
        return HGRNMixerConfig(
            **self._mixer_in_common(),
            norm_eps=self.norm_eps,
            unit=self.unit,
            norm_first=self.norm_first,
            gate_activation=self.gate_activation,
        )

    def _same_in_fla(self) -> dict[str, bool]:
        return super()._same_in_fla() | {
            "unit": self.unit == "real",
            "norm_first": self.norm_first,
            "gate_activation": self.gate_activation == "silu",
        }


@strict
class HGRN2Config(FlaConfig):
    """An HGRN2 language model; see `FlaConfig` for what it shares with HGRN.

    ``expand_ratio`` decides the number of heads; ``num_heads`` does where expand_ratio is None. A num_heads that
    contradicts expand_ratio, as old checkpoints have, is dropped. `longstream.models.HGRN2Config` is another class: the
    arguments of one layer, whose query_scale is 1 by default. `to_model_config` makes one of this.

    Args:
        query_activation: "silu" or "sigmoid".
        value_activation: "none" or "silu".
        query_scale:      factor on the query; None is expand_ratio ** -0.5.
        g_norm_eps:       epsilon of the mixer's norm. fla computes with 1e-5 whatever norm_eps says.
    """

    model_type = "hgrn2"
    _own: ClassVar[tuple[str, ...]] = (
        *FlaConfig._own,
        "query_activation",
        "value_activation",
        "query_scale",
        "g_norm_eps",
    )
    _own_choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "query_activation": ("silu", "sigmoid"),
        "value_activation": ("none", "silu"),
    }

    num_heads: int | None = None
    expand_ratio: int | None = 128

    query_activation: str = "silu"
    value_activation: str = "none"
    query_scale: float | int | None = None
    g_norm_eps: float = 1e-5

    def _check(self) -> None:
        super()._check()
        if self.expand_ratio is None and not self.num_heads:
            raise ValueError(f"HGRN2Config: expand_ratio is None, so num_heads must be >= 1, got {self.num_heads}")
        if self.expand_ratio is None:
            self.expand_ratio = self.hidden_size // self.num_heads  # type: ignore[operator]
        if not 1 <= self.expand_ratio <= self.hidden_size or self.hidden_size % self.expand_ratio:
            raise ValueError(
                f"HGRN2Config: expand_ratio must divide hidden_size {self.hidden_size}, got {self.expand_ratio}"
            )
        heads = self.hidden_size // self.expand_ratio
        if self.num_heads not in (None, heads):
            logger.warning(
                "HGRN2Config: num_heads %s contradicts hidden_size / expand_ratio = %s; expand_ratio counts",
                self.num_heads,
                heads,
            )
        self.num_heads = heads

    def _mixer(self) -> HGRN2MixerConfig:
        assert self.expand_ratio is not None
        return HGRN2MixerConfig(
            **self._mixer_in_common(),
            norm_eps=self.g_norm_eps,
            query_activation=self.query_activation,
            value_activation=self.value_activation,
            query_scale=self.expand_ratio**-0.5 if self.query_scale is None else self.query_scale,
        )

    def _same_in_fla(self) -> dict[str, bool]:
        return super()._same_in_fla() | {
            "query_activation": self.query_activation == "silu",
            "value_activation": self.value_activation == "none",
            "query_scale": self.query_scale in (None, (self.expand_ratio or 1) ** -0.5),
            "g_norm_eps": self.g_norm_eps == 1e-5,
        }

"""Recurrent states of flash-linear-attention (fla) into ours and back, in the layouts of its versions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from longstream.layers import HGRN2State, HGRNState
from longstream.models import HGRN2Config, HGRNConfig, ModelConfig, State
from longstream.models.backbone import fingerprint

LAYOUTS = ("value-first", "key-first")


def state_from_fla(
    layers: Sequence[Mapping[str, Any]], config: Any, position: Tensor | Sequence[int], *, layout: str = "value-first"
) -> State:
    """A state of ours of what fla's ``Cache`` holds, a dictionary a layer.

    Args:
        layers:   of each layer "recurrent_state", HGRN2's (B, H, V, K) or (B, H, K, V), HGRN's (B, E), and
                  "conv_state" where there are short convolutions: the last W inputs of each, (B, E, W), oldest first,
                  in fla's order: query, forget gate, value; HGRN's: candidate, forget gate.
        config:   the model's, of `longstream.hf`, or a `longstream.ModelConfig`.
        position: (B,) tokens that each row has seen; a state of fla's does not know.
        layout:   "value-first", HGRN2's of fla since May 2026; "key-first", before. Where K = V no shape tells.
    Returns:
        `State`, float32 or wider: what the model, or `longstream.hf.RecurrentCache`, takes.
    Raises:
        ValueError: shapes disagree, a layer is not HGRN or HGRN2, or the layout is unknown.
    """
    _check_layout("state_from_fla", layout)
    model = _model_config(config)
    if len(layers) != model.num_layers:
        raise ValueError(f"state_from_fla: layers must be {model.num_layers}, got {len(layers)}")
    seen = torch.as_tensor(position, dtype=torch.long)
    states: list[Any] = []
    for i, (layer, mixer) in enumerate(zip(layers, model.mixers, strict=True)):
        who = f"state_from_fla: layer {i}"
        B = len(seen)
        D = model.hidden_size
        recurrent = _tensor(who, "recurrent_state", layer.get("recurrent_state"))
        if isinstance(mixer, HGRN2Config):
            K = mixer.expand_ratio
            _check_shape(who, "recurrent_state", recurrent, (B, D // K, K, K))
            S = recurrent.transpose(-1, -2) if layout == "value-first" else recurrent
            conv = _conv_from_fla(who, layer.get("conv_state"), mixer.conv_size, (B, D, D, D), recurrent)
            states.append(HGRN2State(_wide(S), conv))
        elif isinstance(mixer, HGRNConfig) and mixer.unit == "real":
            E = D * mixer.expand_ratio
            _check_shape(who, "recurrent_state", recurrent, (B, E))
            conv = _conv_from_fla(who, layer.get("conv_state"), mixer.conv_size, (B, E, E), recurrent)
            states.append(HGRNState(_wide(recurrent), conv))
        else:
            raise ValueError(f"{who} must be HGRN2 or real HGRN, got {type(mixer).__name__}")
    return State(tuple(states), seen, fingerprint(model))


def state_to_fla(state: State, config: Any, *, layout: str = "value-first") -> list[dict[str, Any]]:
    """What fla's ``Cache`` holds of a state of ours: undoes `state_from_fla`.

    The oldest of the W inputs of a convolution, which no step of fla's reads and ours do not keep, is 0.

    Raises:
        ValueError: the state is another model's, a layer is not HGRN or HGRN2, or the layout is unknown.
    """
    _check_layout("state_to_fla", layout)
    model = _model_config(config)
    if state.fingerprint != fingerprint(model):
        raise ValueError(
            f"state_to_fla: the state belongs to another model: expected fingerprint {fingerprint(model)}, got"
            f" {state.fingerprint}"
        )
    layers = []
    for i, (layer, mixer) in enumerate(zip(state.layers, model.mixers, strict=True)):
        if isinstance(layer, HGRN2State):
            recurrent = layer.S.transpose(-1, -2).contiguous() if layout == "value-first" else layer.S
            parts = 3
        elif isinstance(layer, HGRNState) and layer.h.dim() == 2:
            recurrent, parts = layer.h, 2
        else:
            raise ValueError(f"state_to_fla: layer {i} must be HGRN2 or real HGRN, got {type(mixer).__name__}")
        conv = None
        if mixer.conv_size:  # type: ignore[union-attr]
            taps = torch.nn.functional.pad(layer.conv.transpose(1, 2), (1, 0))  # (B, parts E, W)
            conv = tuple(part.contiguous() for part in taps.chunk(parts, dim=1))
        layers.append({"recurrent_state": recurrent, "attn_state": None, "conv_state": conv, "ffn_state": None})
    return layers


def _model_config(config: Any) -> ModelConfig:
    return config if isinstance(config, ModelConfig) else config.to_model_config()


def _check_layout(who: str, layout: str) -> None:
    if layout not in LAYOUTS:
        raise ValueError(f"{who}: layout must be one of {LAYOUTS}, got {layout!r}")


def _tensor(who: str, name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{who}: {name} must be a tensor, got {type(value).__name__}")
    return value


def _check_shape(who: str, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{who}: {name} must have shape {shape}, got {tuple(tensor.shape)}")


def _conv_from_fla(who: str, given: Any, W: int, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The last W - 1 inputs of all convolutions side by side, (B, W - 1, sum of widths)."""
    B, *widths = shape
    if not W:
        if given is not None:
            raise ValueError(f"{who}: conv_state must be None, for the model has no short convolutions")
        return _wide(like).new_zeros(B, 0, sum(widths))
    if not isinstance(given, list | tuple) or len(given) != len(widths):
        raise ValueError(f"{who}: conv_state must be {len(widths)} tensors, got {type(given).__name__}")
    for part, width in zip(given, widths, strict=True):
        _check_shape(who, "conv_state", _tensor(who, "conv_state", part), (B, width, W))
    return _wide(torch.cat([part[:, :, 1:].transpose(1, 2) for part in given], dim=-1))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.contiguous() if tensor.dtype == torch.float64 else tensor.float().contiguous()

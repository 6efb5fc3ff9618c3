"""fla's dictionary of the attention layers in a hybrid."""

from typing import Any

from longstream.models import AttentionConfig

_DEFAULTS = {"num_kv_heads": None, "qkv_bias": False, "window_size": None, "rope_theta": 10000.0}


def check_attn(
    who: str, attn: dict[str, Any], num_layers: int, hidden_size: int, max_position_embeddings: int | None
) -> dict[str, Any]:
    """The dictionary with all of fla's keys; what cannot be computed is refused."""
    known = ("layers", "num_heads", *_DEFAULTS)
    if unknown := sorted(set(attn) - set(known)):
        raise ValueError(f"{who}: attn has unknown keys {unknown}; it takes {list(known)}")
    for key in ("layers", "num_heads"):
        if key not in attn:
            raise ValueError(f"{who}: attn must have {key!r}, got {attn}")
    attn = _DEFAULTS | attn
    layers, numbers = attn["layers"], range(num_layers)
    are_numbers = isinstance(layers, list | tuple) and all(type(i) is int and i in numbers for i in layers)
    if not are_numbers or not 1 <= len(set(layers)) < num_layers:
        raise ValueError(
            f"{who}: attn['layers'] must be a list of numbers from 0 to {num_layers - 1}, of one layer or more but not "
            f"all, got {layers!r}"
        )
    if attn["num_kv_heads"] is None:
        attn["num_kv_heads"] = attn["num_heads"]
    heads, kv_heads = attn["num_heads"], attn["num_kv_heads"]
    if type(heads) is not int or heads < 1 or hidden_size % (2 * heads):  # rotary positions turn pairs of channels
        raise ValueError(
            f"{who}: attn['num_heads'] must divide hidden_size {hidden_size} into heads of even size, got {heads!r}"
        )
    if type(kv_heads) is not int or kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{who}: attn['num_kv_heads'] must divide num_heads {heads}, got {kv_heads!r}")
    if attn["window_size"] is None and max_position_embeddings is None:
        raise ValueError(
            f"{who}: attn['window_size'] must be given where max_position_embeddings is None, got None: a state has an "
            "end"
        )
    attn["layers"] = list(layers)
    to_attention_config(attn, max_position_embeddings)  # refuses the rest
    return attn


def to_attention_config(attn: dict[str, Any], max_position_embeddings: int | None) -> AttentionConfig:
    """The mixer that a checked dictionary describes; full attention ends after max_position_embeddings tokens."""
    options = {key: value for key, value in attn.items() if key != "layers"}
    if options["window_size"] is None:
        options["window_size"] = max_position_embeddings
    return AttentionConfig(**options)

"""Whether two checkpoints are one model: every tensor mapped back, and the outputs of both on the same input."""

import logging
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM

from longstream.convert.checkpoint import Checkpoint
from longstream.convert.tensors import Made, Rounded, largest_difference, same_bits
from longstream.edifice import load_axon
from longstream.models import Backbone
from longstream.train.rundir import quiet_transformers

LOGITS = ("auto", "whole", "never")
MOST_PARAMETERS = 150_000_000  # of a model that "auto" loads whole: 0.6 GB in float32
_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}  # relative to the largest output; the kernels are the same


def compare_tensors(
    before: Checkpoint, after: Checkpoint, dtype: torch.dtype | None, stays: Callable[[str], bool]
) -> float:
    """The largest difference between the source's tensors and what the target gives back of them.

    Args:
        before, after: source and target.
        dtype:         that the source was rounded to, or None.
        stays:         which of our names were not.
    Raises:
        ValueError: a tensor of the source, rounded, is not in the target to the last bit; all are named.
    """
    back = Made(after.in_our_names(), before.layout.to_theirs)
    wrong, largest = [], 0.0
    for name, (ours, _) in before.layout.to_theirs.items():
        is_rounded = dtype is not None and not all(map(stays, ours))
        if name in before.layout.rounds:  # ours do not give it back; but it gives ours
            source, target = before.in_our_names().get(ours[0]), after.in_our_names().get(ours[0])
        else:
            source, target = before.tensors.get(name), back.get(name)
        if not same_bits(source.to(dtype) if is_rounded else source, target):
            wrong.append(name)
        elif is_rounded:
            largest = max(largest, largest_difference(source, target))
    if wrong:
        raise ValueError(f"convert: {len(wrong)} tensors of the target are not the source's: {', '.join(wrong[:8])}")
    return largest


def compare_models(
    before: Checkpoint, after: Checkpoint, dtype: torch.dtype | None, stays: Callable[[str], bool], logits: str
) -> tuple[float | None, str]:
    """The largest difference between the outputs of both models, the source rounded as the target was, and in words
    what was compared.

    Raises:
        ValueError: it is more than kernels differ by, or the source's are not finite.
    """
    if logits == "never":
        return None, "not compared, as was asked"
    is_double = any(before.tensors.meta(name).dtype == torch.float64 for name in before.tensors.names())
    wide = torch.float64 if is_double else torch.float32
    given, words = _input(before, wide)
    if logits == "auto" and before.parameters() > MOST_PARAMETERS and not before.is_frames:
        how = ", layer by layer"
        exact = _output_by_layers(before, given, wide, None, stays)
        expected = exact if dtype is None else _output_by_layers(before, given, wide, dtype, stays)
        got = _output_by_layers(after, given, wide, None, stays)
    else:
        model, how = _load(before, wide)
        exact = _output(model, given)
        if dtype is not None:
            for name, parameter in model.named_parameters():
                if not stays(name):
                    parameter.data = parameter.data.to(dtype).to(wide)
        expected = exact if dtype is None else _output(model, given)
        del model
        got = _output(_load(after, wide)[0], given)
    if not expected.isfinite().all():
        raise ValueError(
            f"convert: the source puts out NaN or infinity on {words}, which proves nothing; --logits never leaves"
            " it out"
        )
    difference = largest_difference(got, expected)
    limit = _TOLERANCE[wide] * max(1.0, float(expected.abs().max()))
    if got.shape != expected.shape or not difference <= limit:
        raise ValueError(
            f"convert: the outputs of source and target differ by {difference:.1e}, more than {limit:.1e}, on {words}"
        )
    if dtype is not None:
        how += f", rounded alike; {largest_difference(got, exact):.1e} from the source as it is"
    return difference, f"of both on {words}{how}"


def _input(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Tensor, str]:
    generator = torch.Generator().manual_seed(0)
    if checkpoint.is_frames:
        options = checkpoint.config.options
        T = min(24, options.get("seq_len") or options.get("window_size") or 24)
        return torch.randn(2, T, options["embed_dim"], generator=generator, dtype=dtype), f"2 x {T} frames"
    model = checkpoint.config.to_model_config()
    T = min(37, model.max_seq_len or 37)
    return torch.randint(0, model.vocab_size, (2, T), generator=generator), f"2 x {T} ids"


@torch.no_grad()
def _output_by_layers(
    checkpoint: Checkpoint, ids: Tensor, wide: torch.dtype, dtype: torch.dtype | None, stays: Callable[[str], bool]
) -> Tensor:
    """What the whole model would put out, with the tensors of one block in memory at a time."""
    tensors = Rounded(checkpoint.in_our_names(), dtype, stays)
    base = "model." if checkpoint.has_head else ""
    embeddings = f"{base}embeddings.weight"
    with torch.device("meta"):
        backbone = Backbone(checkpoint.config.to_model_config()).eval()
    blocks = list(backbone.layers)

    rooms: dict[tuple[str, torch.Size], Tensor] = {}  # one block's, used again: memory that is freed comes back in bits

    def fill(module: nn.Module, prefix: str, names: Iterable[str]) -> None:
        read = {}
        for name in names:
            tensor = tensors.get(f"{base}backbone.{prefix}{name}")
            if (name, tensor.shape) not in rooms:
                rooms[name, tensor.shape] = torch.empty(tensor.shape, dtype=wide)
            read[name] = rooms[name, tensor.shape].copy_(tensor)
        module.load_state_dict(read, strict=False, assign=True)

    def run(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fill(block, f"layers.{blocks.index(block)}.", list(block.state_dict()))
        return block(*args, **kwargs)

    fill(backbone, "", [name for name in backbone.state_dict() if not name.startswith("layers.")])
    y, _ = backbone(tensors.get(embeddings)[ids].to(wide), run_block=run)
    if not checkpoint.has_head:
        return y
    head = tensors.get("lm_head.weight" if "lm_head.weight" in tensors.names() else embeddings)
    return torch.cat([y @ rows.to(wide).t() for rows in head.split(4096)], dim=-1)


@torch.no_grad()
def _output(model: nn.Module, given: Tensor) -> Tensor:
    if given.is_floating_point():
        return model(given, outputs="all")[0]
    outputs = model(given, use_cache=False)
    return outputs.logits if hasattr(outputs, "logits") else outputs.last_hidden_state


def _load(checkpoint: Checkpoint, dtype: torch.dtype) -> tuple[Any, str]:
    """The model in evaluation mode, by its own loader where it has one, and how, in words."""
    if checkpoint.is_frames:
        model: Any = checkpoint.config.build().to(dtype)
        if checkpoint.format == "axon":
            load_axon(model, checkpoint.path)
        else:
            model.load_state_dict({name: checkpoint.tensors.get(name) for name in checkpoint.tensors.names()})
        return model.eval(), ""
    auto: Any = AutoModelForCausalLM if checkpoint.has_head else AutoModel
    is_folder = checkpoint.path.is_dir() and any(checkpoint.path.glob("model*.safetensors"))
    with quiet_transformers(), _quiet():
        if is_folder and checkpoint.is_stored_config:
            return auto.from_pretrained(checkpoint.path, dtype=dtype).eval(), ""
        model = auto.from_config(checkpoint.config).to(dtype)
    ours = checkpoint.in_our_names()
    missing, spare = model.load_state_dict({name: ours.get(name).to(dtype) for name in ours.names()}, strict=False)
    if spare or set(missing) - {"lm_head.weight"}:
        raise ValueError(f"convert: {checkpoint.path} does not fill its model: {missing}, {spare}")
    model.tie_weights()
    return model.eval(), " (the source computed by longstream, for its own class is not here)"


@contextmanager
def _quiet() -> Any:
    """Without what our configurations say while they are read: it was said before."""
    logger = logging.getLogger("longstream")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""What studies measure of trained runs beside the figures that training leaves: memory, speed, use of the context."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longstream.studies.statistics import summarize
from longstream.studies.study import Metric, Run, half_of

Figures = dict[str, float]
BITS = Metric(key="bits_per_byte", label="bits per byte", higher=False, digits=4)
ACCURACY = Metric(key="accuracy", label="accuracy, %", higher=True, digits=1, scale=100.0)
EQUAL_BITS = Metric(key="bits_equal", label="bits per byte, equal context", higher=False, digits=4)
LOSS = Metric(key="loss", label="held-out loss, nats", higher=False)
COSTS = (  # of `costs_of`
    Metric(key="state_kib", label="state, KiB", higher=False, digits=1),
    Metric(key="activations_kib_per_token", label="training memory, KiB a token", higher=False, digits=1),
    Metric(key="training_us", label="training, \u00b5s a token", higher=False, digits=0),
    Metric(key="decoding_us", label="decoding, \u00b5s a token", higher=False, digits=0),
)
PARAMETERS = Metric(key="parameters", label="parameters", higher=False, digits=0)
COSTS_NOTE = (
    "State: what one sequence carries from token to token, with no training context. Training memory: what a pass "
    "keeps for the way back. Times are CPU time of one core, forward and backward pass without the optimizer, and one "
    "token at a time for a single sequence; they are this machine's."
)
ROUNDS = 5  # turns that each model takes, after one that does not count


def load(folder: Path) -> Any:
    """The language model of a run directory, ready to evaluate."""
    from longstream.train.loading import load_model

    return load_model(folder)


def memory(model: Any, *, length: int, rows: int = 1) -> Figures:
    """What a sequence of ``length`` tokens takes, in KiB; these depend on the model alone, not on the machine.

    Returns:
        ``state_kib``: carried from token to token when decoding. ``activations_kib_per_token``: kept by a training
        pass for the way back, without the weights.
    """
    return {
        "state_kib": state_bytes(model, length) / 1024,
        "activations_kib_per_token": activation_bytes(model, length, rows) / 1024 / (length * rows),
    }


def state_bytes(model: Any, length: int) -> int:
    """Bytes that one sequence of ``length`` tokens leaves to go on from."""
    import torch

    from longstream.baselines.language import cache_bytes, continue_from

    with torch.no_grad():
        return cache_bytes(continue_from(model, _ids(model, 1, length))[1])


def activation_bytes(model: Any, length: int, rows: int = 1) -> int:
    """Bytes that the forward pass of a training step keeps for the backward pass, without the parameters."""
    import torch

    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}  # storages stay alive with the graph, so that no address comes twice

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = _ids(model, rows, length)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    del loss
    return sum(kept.values())


def speeds(models: Mapping[Any, Any], *, length: int, rows: int, decoded: int = 64) -> dict[Any, Figures]:
    """Microseconds of one core for a token, the models in turns; ``models`` by any key.

    Returns:
        By key the means over rounds, and half of their intervals by `half_of`. ``training_us``: forward and backward
        pass of ``rows`` sequences of ``length`` tokens, without the optimizer. ``decoding_us``: one token more of one
        sequence.
    """
    taken: dict[Any, dict[str, list[float]]] = {key: {"training_us": [], "decoding_us": []} for key in models}
    with one_thread():
        for turn in range(ROUNDS + 1):
            for key, model in models.items():
                seconds = _clocked(lambda model=model: _train_pass(model, rows, length)) / (rows * length)
                once = _clocked(lambda model=model: _decode(model, decoded)) / decoded
                if turn:
                    taken[key]["training_us"].append(1e6 * seconds)
                    taken[key]["decoding_us"].append(1e6 * once)
    return {
        key: {k: v for name, each in of.items() for k, v in rounds(name, each).items()} for key, of in taken.items()
    }


def rounds(key: str, values: Sequence[float]) -> Figures:
    """A figure's mean over rounds, and half of its interval if there are two."""
    found = summarize(values)
    return {key: found.mean, **({} if found.half is None else {half_of(key): found.half})}


def costs_of(
    runs: Iterable[Run], folder: Path, *, length: int, rows: int = 4
) -> dict[tuple[str, str], Mapping[str, float]]:
    """`memory` and `speeds` of the first trained run of each (group, variant), whose directories lie in ``folder``."""
    models: dict[tuple[str, str], Any] = {}
    for run in runs:
        key = run.group, run.variant
        if key not in models and (folder / run.name / "model.safetensors").is_file():
            models[key] = load(folder / run.name)
    found = speeds(models, length=length, rows=rows)
    return {key: {**found[key], **memory(model, length=length, rows=rows)} for key, model in models.items()}


def position_losses(folder: Path, edges: Sequence[int]) -> Figures:
    """Bits per byte of held-out text by how much a byte has in front of it.

    Up to the length of training all models read the same windows, of that length; what stands further behind is from
    windows as long as the last edge, which not all take.

    Args:
        edges: ``(32, 256)`` gives ``bits_to_32``, of the bytes with 1 to 32 tokens in front of them, and
               ``bits_to_256``, of those with 33 to 256. Powers of two.
    Returns:
        These, and ``bits_equal``: of all bytes with 1 to as many tokens in front of them as in training.
    """
    from longstream.train.contexts import loss_by_position
    from longstream.train.loading import load_run
    from longstream.train.rundir import RunDirectory
    from longstream.train.text_task import read_data

    run = load_run(folder)
    data = RunDirectory(folder).read_settings().data
    held_out, trained = read_data(data)[1], data.seq_len
    near = loss_by_position(run.model, run.tokenizer, held_out, trained)
    far = loss_by_position(run.model, run.tokenizer, held_out, edges[-1]) if edges[-1] > trained else []
    buckets = {f"bits_to_{edge}": (low, edge) for low, edge in zip((0, *edges), edges, strict=False)}
    found: Figures = {}
    for name, (low, high) in {**buckets, EQUAL_BITS.key: (0, trained)}.items():
        # Every place of a window weighs the same, so buckets weigh by how many places they have.
        losses = near if high <= trained else far
        parts = [(p.before - p.after, p.bits_per_byte) for p in losses if low < p.after and p.before - 1 <= high]
        if parts:  # no document may be so long
            found[name] = sum(size * bits for size, bits in parts) / sum(size for size, _ in parts)
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch has one thread: then the time of the process is that of a core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _clocked(run: Callable[[], None]) -> float:
    """Seconds of this process, which others at work beside it do not lengthen."""
    started = time.process_time()
    run()
    return time.process_time() - started


def _train_pass(model: Any, rows: int, length: int) -> None:
    ids = _ids(model, rows, length)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)


def _decode(model: Any, tokens: int) -> None:
    import torch

    from longstream.baselines.language import continue_from

    cache = None
    ids = _ids(model, 1, tokens)
    with torch.no_grad():
        for t in range(tokens):
            cache = continue_from(model, ids[:, t : t + 1], cache)[1]


def _ids(model: Any, rows: int, length: int) -> Any:
    """(rows, length) tokens, the same ones every time."""
    import torch

    random = torch.Generator().manual_seed(0)
    return torch.randint(model.config.vocab_size, (rows, length), generator=random)

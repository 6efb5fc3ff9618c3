"""What a model's memory costs beside all else that it computes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from torch import nn

from longstream.inspect.subject import Subject
from longstream.layers import HGRN, HGRN2, Hyena, SlidingWindowAttention

REPEATS = 3  # of which the fastest counts
FFT = 5 / 4  # multiply-adds of a real fast Fourier transform of n numbers, over n log2 n (half of a complex one's)


@dataclass(frozen=True)
class Cost:
    """Multiply-adds a token, counted; and CPU time, measured.

    Attributes:
        weights: by layer, of its matrices: one for each of their numbers.
        memory:  by layer, of what brings the past to a token: the recurrence, the long convolution, attention.
        kinds:   by layer, the mixer's name.
        seconds: CPU seconds a token, in passes of one sequence of so many tokens; empty if not measured.
    """

    weights: tuple[float, ...]
    memory: tuple[float, ...]
    kinds: tuple[str, ...]
    seconds: dict[int, float]

    @property
    def share(self) -> float:
        """The memory's multiply-adds over those of the matrices."""
        return sum(self.memory) / max(sum(self.weights), 1.0)

    @property
    def growth(self) -> float | None:
        """Time a token in the longest pass over that in the shortest; None if not measured."""
        if len(self.seconds) < 2:
            return None
        return self.seconds[max(self.seconds)] / self.seconds[min(self.seconds)]

    def as_json(self) -> dict[str, Any]:
        """Plain numbers."""
        return {
            "mixers": self.kinds,
            "weights": self.weights,
            "memory": self.memory,
            "share": self.share,
            "cpu_seconds_per_token": self.seconds,
        }


def count_cost(subject: Subject) -> Cost:
    """The multiply-adds alone; see `memory_work`."""
    mixers = subject.mixers
    weights = [
        sum(float(p.numel()) for module in block.modules() if isinstance(module, nn.Linear) for p in [module.weight])
        for block in subject.backbone.layers
    ]
    made = [_linear_numbers(mixer.filter) if isinstance(mixer, Hyena) else 0.0 for mixer in mixers]
    return Cost(
        weights=tuple(w - m for w, m in zip(weights, made, strict=True)),
        memory=tuple(memory_work(mixer, subject.length, subject.batch_size) for mixer in mixers),
        kinds=tuple(type(mixer).__name__ for mixer in mixers),
        seconds={},
    )


def memory_work(mixer: nn.Module, T: int, rows: int = 1) -> float:
    """Multiply-adds a token of what of a mixer is not a matrix that all tokens meet, in ``rows`` sequences of T tokens.

    HGRN: 1 a channel (4 for a complex one). HGRN2: K a channel to decay the state, to write to it and to read it, and
    D channels. Attention: 2 a channel for every token in sight. Hyena: three Fourier transforms of 2 T numbers a
    channel and stage, shared out over T tokens, and the filters' network, which runs once for each lag and serves all
    rows.
    """
    if isinstance(mixer, HGRN2):
        work = 3.0 * mixer.hidden_size * mixer.expand_ratio
        return work * (1 if mixer.causal else 4 if mixer.direction == "2d_parallel" else 2)
    if isinstance(mixer, HGRN):
        scans = {"causal": 1, "bidirectional": 2, "2d": 4}[mixer.direction]
        return float(mixer.gate_size * scans * (4 if mixer.unit == "complex" else 1))
    if isinstance(mixer, SlidingWindowAttention):
        seen = min(mixer.window_size, T) - min(mixer.window_size, T) ** 2 / (2 * T)  # fewer at the beginning
        return 2.0 * mixer.hidden_size * seen
    if isinstance(mixer, Hyena):
        both = 1 if mixer.causal else 2
        transforms = 3 * FFT * 2 * math.log2(max(2 * T, 2)) * mixer.hidden_size * (mixer.order - 1)
        return both * (transforms + _linear_numbers(mixer.filter) / rows)
    raise TypeError(f"memory_work: mixer must be one of hgrn, hgrn2, hyena, attention, got {type(mixer).__name__}")


def _linear_numbers(module: nn.Module) -> float:
    return float(sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear)))


def measure_cost(subject: Subject) -> Cost:
    """Counted, and for a causal model timed on one sequence and on its first quarter."""
    counted = count_cost(subject)
    if not subject.causal or subject.length < 8:
        return counted
    row = subject.inputs[:1]
    lengths = (subject.length // 4, subject.length)
    seconds = dict.fromkeys(lengths, math.inf)
    for _ in range(REPEATS + 1):  # the first one warms up, and never is the fastest
        for T in lengths:
            passes = subject.length // T  # so that both take in as many tokens
            started = time.process_time()
            for _ in range(passes):
                subject.run(row[:, :T])
            seconds[T] = min(seconds[T], (time.process_time() - started) / (passes * T))
    return Cost(counted.weights, counted.memory, counted.kinds, seconds)

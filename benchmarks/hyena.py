"""Decoding with a layer of Hyena: tiled against running the layer anew for every token, and its cost against length.

    python benchmarks/hyena.py

One thread. Both ways are compared with each other before anything is printed; running anew is timed at some lengths,
its filters kept, and summed over all by straight lines between them.
"""

import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from longstream import Hyena

D, T = 256, 4096
LENGTHS = (1, 64, 256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096)


def fastest(run: Callable[[], object], times: int = 5) -> float:
    """Seconds."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


@torch.inference_mode()
def decode(layer: Hyena, x: Tensor, marks: tuple[int, ...]) -> tuple[Tensor, list[float]]:
    """All outputs token by token, and the seconds until each of the marks."""
    state, outs, seconds, start = layer.init_state(1), [], [], time.perf_counter()
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        outs.append(y)
        if t + 1 in marks:
            seconds.append(time.perf_counter() - start)
    return torch.stack(outs, dim=1), seconds


@torch.inference_mode()
def main() -> None:
    """Print both figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, 1 thread, float32, {D} channels")
    layer, x = Hyena(D, max_seq_len=T).eval(), torch.randn(1, T, D)
    whole, _ = layer(x)
    decode(layer, x, (T,))  # makes filters and spectra
    streamed, (tiled,) = decode(layer, x, (T,))
    error = float((streamed - whole).abs().max() / whole.abs().max())
    assert error < 1e-5, error
    costs = [fastest(lambda n=n: layer(x[:, :n])) for n in LENGTHS]
    anew = sum((b - a) * (p + q) / 2 for (a, b), (p, q) in zip(pairwise(LENGTHS), pairwise(costs), strict=True))
    ratio = f"{anew / tiled:.1f} times"
    print(f"{T:,} tokens: tiled {tiled:.2f} s, anew {anew:.1f} s: {ratio}; largest difference {error:.0e}")

    marks = (512, 1536, 15360, 16384)
    layer, x = Hyena(D, max_seq_len=16384).eval(), torch.randn(1, 16384, D)
    decode(layer, x, marks)
    _, (a, b, c, d) = decode(layer, x, marks)
    early, late = (b - a) / 1024 * 1e6, (d - c) / 1024 * 1e6
    print(f"a token at 1k {early:.0f} us, at 16k {late:.0f} us: {late / early:.2f}-fold")


if __name__ == "__main__":
    main()

"""The figures that the kernels are required to reach, from the rows of one run: required, measured, reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from longstream.bench.measure import OURS, Row

FLAT = 0.10  # how far times a token may lie apart
BEATEN = {512: 1.3, 4096: 4.0, 16384: 12.0}  # HGRN2 against attention, by length
TRAINED = {1024: 1.15, 4096: 2.0, 8192: 3.5}  # against Llama, by length


class Figure(NamedTuple):
    """A line of the table."""

    what: str
    shape: str
    required: str
    measured: str
    reached: bool | None  # None where it was not measured


class _Times:
    """Median times of the rows with the most threads."""

    def __init__(self, rows: Sequence[Row]) -> None:
        most = max((row.threads for row in rows), default=0)
        self.rows = {(r.group, r.mode, r.B, r.T, r.name): r for r in rows if r.threads == most}

    def get(self, *key: str | int) -> float | None:
        row = self.rows.get(key)  # type: ignore[call-overload]
        return row.median_ms if row else None

    def share(self, *key: str | int) -> float | None:
        row = self.rows.get(key)  # type: ignore[call-overload]
        return row.share if row else None


def figures(rows: Sequence[Row], backend: str = "native") -> list[Figure]:
    """All required figures; those whose rows are not there are not measured."""
    times = _Times(rows)
    return [
        *_gla(times, backend),
        *_scan(times, backend),
        *_conv(times, backend),
        *_layers(times, backend),
        *_training(times, backend),
    ]


def _at_least(what: str, shape: str, least: float, a: float | None, b: float | None = 1.0, unit: str = "x") -> Figure:
    """That a / b is at least so much."""
    if a is None or not b:
        return Figure(what, shape, f">= {_shown(least, unit)}", "not measured", None)
    return Figure(what, shape, f">= {_shown(least, unit)}", _shown(a / b, unit), a / b >= least)


def _at_most(what: str, shape: str, most: float, a: float | None, b: float | None) -> Figure:
    if a is None or not b:
        return Figure(what, shape, f"<= {most:g}x", "not measured", None)
    return Figure(what, shape, f"<= {most:g}x", _shown(a / b, "x"), a / b <= most)


def _shown(value: float, unit: str) -> str:
    return f"{value * 100:.0f} %" if unit == "%" else f"{value:.3g}x"


def _flat(what: str, shape: str, a_token: Sequence[float | None]) -> Figure:
    known = [t for t in a_token if t is not None]
    if len(known) < len(a_token):
        return Figure(what, shape, f"<= {FLAT:.0%} apart", "not measured", None)
    apart = max(known) / min(known) - 1
    return Figure(what, shape, f"<= {FLAT:.0%} apart", f"{apart:.1%} apart", apart <= FLAT)


def _gla(times: _Times, backend: str) -> Iterator[Figure]:
    lengths = (512, 4096, 16384)
    for T in lengths:
        fwd, both = ("gla", "fwd", 1, T), ("gla", "fwd+bwd", 1, T)
        yield _at_least(
            "gla forward, times as fast as torch", f"T={T}", 4, times.get(*fwd, "torch"), times.get(*fwd, backend)
        )
        yield _at_least("gla forward, of the multiply-add rate", f"T={T}", 0.65, times.share(*fwd, backend), unit="%")
        yield _at_least(
            "gla forward + backward, times as fast as torch",
            f"T={T}",
            6,
            times.get(*both, "torch"),
            times.get(*both, backend),
        )
        yield _at_most(
            "gla forward + backward, over forward", f"T={T}", 4.5, times.get(*both, backend), times.get(*fwd, backend)
        )
    found = [times.get("gla", "fwd", 1, T, backend) for T in lengths]
    yield _flat(
        "gla forward, time a token",
        f"T={lengths[0]} to {lengths[-1]}",
        [t and t / T for t, T in zip(found, lengths, strict=True)],
    )


def _scan(times: _Times, backend: str) -> Iterator[Figure]:
    for B, T in ((8, 4096), (1, 32768)):
        for mode, least in (("fwd", 0.8), ("fwd+bwd", 0.6)):
            key, shape = ("gated_scan", mode, B, T), f"B={B} T={T}"
            yield _at_least(
                f"gated_scan {mode}, of the copy bandwidth", shape, least, times.share(*key, backend), unit="%"
            )
            yield _at_least(
                f"gated_scan {mode}, times as fast as jax.lax.scan",
                shape,
                1,
                times.get(*key, "jax.lax.scan, jit"),
                times.get(*key, backend),
            )


def _conv(times: _Times, backend: str) -> Iterator[Figure]:
    for T in (1024, 8192, 65536):
        for mode, least in (("fwd", 4), ("fwd+bwd", 3)):
            key = ("long_conv", mode, 1, T)
            yield _at_least(
                f"long_conv {mode}, times as fast as torch.fft",
                f"T={T}",
                least,
                times.get(*key, "torch"),
                times.get(*key, backend),
            )


def _layers(times: _Times, backend: str) -> Iterator[Figure]:
    for T, least in BEATEN.items():
        key = ("layer", "fwd+bwd", 1, T)
        ours, alone = times.get(*key, f"HGRN2 {backend}"), times.get(*key, "projections alone")
        yield _at_least(
            "HGRN2 layer, times as fast as attention", f"T={T}", least, times.get(*key, "SDPA attention"), ours
        )
        peers = [
            row
            for k, row in times.rows.items()
            if k[:4] == key and row.package != OURS and row.name != "projections alone"
        ]
        timed = [row for row in peers if row.median_ms]
        yield _fastest(f"T={T}", ours, timed, [row.name for row in peers if not row.median_ms and not _too_slow(row)])
        yield _at_most("HGRN2 layer, over its projections", f"T={T}", 1.8, ours, alone)
        yield _at_most("HGRN layer, over its projections", f"T={T}", 1.8, times.get(*key, f"HGRN {backend}"), alone)


def _too_slow(row: Row) -> bool:
    return row.note.startswith("not timed: a call takes")


def _fastest(shape: str, ours: float | None, timed: Sequence[Row], missing: Sequence[str]) -> Figure:
    """Against the fastest peer. One that was too slow to be timed is beaten; one that is missing may not be."""
    what = "HGRN2 layer, times as fast as the fastest peer"
    if not ours or not timed:
        return Figure(what, shape, "> 1x", "not measured", None)
    fastest = min(timed, key=lambda row: row.median_ms or 0)
    ratio = (fastest.median_ms or 0) / ours
    without = f"; without {', '.join(missing)}" if missing else ""
    reached = None if missing and ratio > 1 else ratio > 1
    return Figure(what, shape, "> 1x", f"{ratio:.3g}x ({fastest.name}, of {len(timed)}{without})", reached)


def _training(times: _Times, backend: str) -> Iterator[Figure]:
    found = {key[3]: key for key in times.rows if key[0] == "train" and key[4] == f"HGRN2 {backend}"}
    for T, least in TRAINED.items():
        key = found.get(T, ("train", "train", 1, T, f"HGRN2 {backend}"))
        yield _at_least(
            "training HGRN2, times as fast as Llama", f"T={T}", least, times.get(*key[:4], "Llama"), times.get(*key)
        )
    lengths = (256, 1024, 4096, 8192, 65536)
    keys = [found.get(T, ("train", "train", 1, T, "")) for T in lengths]
    for T, key in zip(lengths, keys, strict=True):
        yield _at_least("training HGRN2, of the matrix-product rate", f"T={T}", 0.6, times.share(*key), unit="%")
    a_token = [(time_ := times.get(*key)) and time_ / key[2] / key[3] for key in keys]
    yield _flat("training HGRN2, time a token", "T=256 to 65536", a_token)

"""Watch a sensor: after every sample the forecast of the next ones, and an alarm where samples are not as foreseen.

    pip install 'longstream[train]'
    pip download --no-deps --only-binary :all: --python-version 3.11 scipy==1.11.4
    python examples/sensor.py scipy-1.11.4-*.whl --picture ecg.png

The wheel holds five minutes of a real heart that beats irregularly (MIT-BIH arrhythmia database, record 208, lead MLII,
360 Hz, PhysioNet, ODC-BY); newer ones hold it no more. Any other series does as well: .npz, .npy, .csv or .txt.

A model learns from the first half to forecast the next samples and how sure it is of them: Laplace distributions, whose
medians are a linear map of the last 64 samples and what the model, which remembers more, adds to it. A tenth of the
series then sets the scale of errors and the height of an alarm. In the rest disturbances of six kinds are put at known
places, and it is streamed sample by sample: the score of a sample is how wrong the forecasts of it were, in robust
units. In the middle the state is saved to a file and read back into a new stream, and both go on: where their outputs
differ in a single bit the program ends with 1. What is found is reported beside what predictors without a memory find
by the same rule, the linear map alone and the last value.
"""

import argparse
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from anomalies import (
    KINDS,
    TAPS,
    Event,
    Floats,
    Forecasts,
    Found,
    disturb,
    fit_linear,
    judge,
    last_value,
    linear,
    windows,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import longstream
from longstream import State
from longstream.models import parameter_groups
from longstream.stream import Stream, unbounded
from longstream.train.rundir import written_beside

PIECE = 720  # samples that training looks at together
console = Console(highlight=False, soft_wrap=True)


def read_series(path: Path, channel: int) -> Floats:
    """(T,) of a wheel of SciPy, an array, or a table."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel, wheel.open("scipy/misc/ecg.dat") as file, np.load(file) as arrays:
            return (arrays["ecg"].astype(np.float32) - 1024) / 200  # millivolts
    try:
        if path.suffix in (".npz", ".npy"):
            loaded = np.load(path, allow_pickle=False)
            series = loaded if isinstance(loaded, np.ndarray) else loaded[loaded.files[0]]
        else:
            series = np.genfromtxt(path, delimiter="," if path.suffix == ".csv" else None, dtype=np.float32)
            series = series[1:] if len(series) and not np.isfinite(series[0]).any() else series  # a line of names
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no array and no table of numbers: {error}") from error
    series = series.squeeze()
    series = series.reshape(len(series), -1) if series.ndim else series.reshape(1, 1)
    if not 0 <= channel < series.shape[1]:
        raise ValueError(f"--channel must lie in [0, {series.shape[1]}), got {channel}")
    series = series[:, channel].astype(np.float32)
    if len(series) < 10 * PIECE or not np.isfinite(series).all():
        raise ValueError(f"{path} must hold {10 * PIECE} or more finite samples, got {len(series)}")
    return series


class Forecaster(nn.Module):
    """The next samples after each, as medians and scales of Laplace distributions.

    A frame is the last TAPS samples. The medians are a linear map of them, which is given, and what a model that has a
    memory adds to it; so are the scales.
    """

    weights: Tensor

    def __init__(self, model: str, hidden_size: int, like: Floats, weights: Floats):
        super().__init__()
        sizes = {"embed_dim": TAPS, "hidden_size": hidden_size, "num_layers": 2}
        self.features = longstream.build(model, **sizes, window_size=PIECE // 2, dropout=0.0)
        self.head = nn.Linear(hidden_size, 2 * weights.shape[1])
        nn.init.zeros_(self.head.weight)  # at first it adds nothing
        nn.init.zeros_(self.head.bias)
        self.register_buffer("weights", torch.from_numpy(weights))
        self.middle, self.unit = float(np.median(like)), float(like.std()) or 1.0

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """seen (B, T, TAPS) -> medians and scales (B, T, ahead), in the units of the series."""
        return self.read(self.features(self.scaled(seen), outputs="all")[0], seen)

    def scaled(self, seen: Tensor) -> Tensor:
        """Around 0, of size 1."""
        return (seen - self.middle) / self.unit

    def read(self, hidden: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What the model's vectors (..., D) say after the samples (..., TAPS)."""
        change, log_scale = self.head(hidden).chunk(2, dim=-1)
        medians = seen @ self.weights[:-1] + self.weights[-1] + self.unit * change
        return medians, self.unit * log_scale.clamp(-6, 4).exp()


def train(forecaster: Forecaster, series: Floats, ahead: int, minutes: float, seed: int) -> None:
    """Maximum likelihood on pieces of the series, for so long."""
    rng, x = np.random.default_rng(seed), torch.from_numpy(series)
    optimizer = torch.optim.AdamW(parameter_groups(forecaster, lr=5e-3, weight_decay=0.01))
    highest = [group["lr"] for group in optimizer.param_groups]
    began, step, done, loss = time.perf_counter(), 0, 0.0, torch.zeros(())
    while done < 1:
        step += 1
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * min(step / 30, 1.0) * (1.02 - done)
        starts = torch.from_numpy(rng.integers(0, len(series) - TAPS - PIECE - ahead, 8))
        pieces = x[starts[:, None] + torch.arange(TAPS - 1 + PIECE + ahead)]
        medians, scales = forecaster(pieces[:, :-ahead].unfold(1, TAPS, 1))
        errors = (medians - pieces[:, TAPS:].unfold(1, ahead, 1)).abs()
        loss = (errors / scales + scales.log())[:, PIECE // 6 :].mean()  # from where there is something to go on
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(forecaster.parameters(), 1.0)
        optimizer.step()
        done = (time.perf_counter() - began) / (60 * minutes)
    console.print(f"trained for {time.perf_counter() - began:.0f} s, {step} steps: loss {loss.item():.3f}")


def stream_forecasts(
    stream: Stream, forecaster: Forecaster, series: Floats, middle: int
) -> tuple[Forecasts, int, float]:
    """Forecasts sample by sample; outputs that a restored state changed; median microseconds of a sample."""
    seen = torch.from_numpy(windows(series).copy())
    frames = forecaster.scaled(seen)
    hidden = torch.empty(len(series), forecaster.features.output_size)
    times, other, differing = np.empty(len(series)), None, 0
    for t in range(len(series)):
        began = time.perf_counter()
        stream.step(frames[t], out=hidden[t])
        times[t] = time.perf_counter() - began
        if other is not None:
            differing += not torch.equal(other.step(frames[t]), hidden[t])
        if t == middle:
            with tempfile.TemporaryDirectory() as folder:
                stream.state.save(Path(folder) / "state.safetensors")
                state = State.load(Path(folder) / "state.safetensors")
            other = unbounded(forecaster.features, weights=stream.weights, state=state)
    with torch.no_grad():
        medians, scales = forecaster.read(hidden, seen)
    return (medians.numpy(), scales.numpy()), differing, 1e6 * float(np.median(times))


def run(args: argparse.Namespace) -> int:
    """Learn, stream, report; 0, or 1 where a restored state gave other outputs."""
    series, ahead, rate = read_series(args.series, args.channel), args.ahead, args.rate
    learned, quiet, live = np.split(series, [len(series) // 2, len(series) * 6 // 10])
    disturbed, events = disturb(live, rate, args.seed)
    if not events:
        raise ValueError(f"{args.series} is too short for disturbances at --rate {rate:g}")
    watched = np.concatenate([quiet, disturbed])
    torch.manual_seed(args.seed)
    weights = fit_linear(learned, ahead)
    forecaster = Forecaster(args.model, args.hidden_size, learned, weights)
    console.print(f"{len(series):,} samples; {args.model} learns from the first {len(learned):,}")
    train(forecaster, learned, ahead, args.minutes, args.seed)
    stream = unbounded(forecaster.eval().features, weights=args.weights)
    streamed, differing, each = stream_forecasts(stream, forecaster, watched, len(quiet) + len(disturbed) // 2)
    budget = 1e6 / rate
    console.print(
        f"streamed {len(watched):,} samples, backend {stream.backend}, {each:.0f} microseconds a sample (the"
        f" median) of {budget:,.0f}; {stream.nbytes:,} bytes of state"
    )
    found = {
        args.model: judge(streamed, watched, len(quiet), events, rate, args.false_alarms),
        "last value": judge(last_value(watched, ahead), watched, len(quiet), events, rate, args.false_alarms),
        "linear": judge(linear(watched, weights), watched, len(quiet), events, rate, args.false_alarms),
    }
    report(found, events, ahead, len(disturbed) / rate / 60)
    if args.picture:
        draw(args.picture, disturbed, streamed[0][len(quiet) :], found, events, rate)
        console.print(f"picture: {args.picture}")
    if differing:
        console.print(f"FAILED: {differing} outputs after the state was restored differ")
        return 1
    console.print("the state was saved and restored in the middle: not a bit differs")
    return 0


def report(found: dict[str, Found], events: list[Event], ahead: int, minutes: float) -> None:
    """Who found what."""
    table = Table("", *found, title=f"{len(events)} disturbances in {minutes:.1f} minutes", title_justify="left")
    table.add_row(f"mean error, 1 to {ahead} samples ahead", *(f"{one.error:.4f}" for one in found.values()))
    table.add_row("disturbances found", *(str(sum(one.found.values())) for one in found.values()))
    for kind in KINDS:
        number = sum(event.kind == kind for event in events)
        table.add_row(f"  {kind}, {number}", *(str(one.found[kind]) for one in found.values()))
    table.add_row("alarms elsewhere", *(str(one.false_alarms) for one in found.values()))
    table.add_row("half seconds ranked right", *(f"{one.ranking:.1%}" for one in found.values()))
    console.print(table)


def draw(
    path: Path, series: Floats, medians: Floats, found: dict[str, Found], events: list[Event], rate: float
) -> None:
    """Ten seconds of the series with forecasts, and the scores of all predictors below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 2.2 + 1.5 * len(found)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + len(found), 1, sharex=True, height_ratios=[2, *[1] * len(found)])
    start, stop = 0, min(len(series), int(22 * rate))
    seconds = np.arange(start, stop) / rate
    ahead = medians.shape[1]
    foreseen = medians[start : stop - ahead, -1]
    axes[0].plot(seconds[ahead:], foreseen, color="tab:cyan", linewidth=2, label=f"foreseen {ahead} samples before")
    axes[0].plot(seconds, series[start:stop], color="black", linewidth=0.7, label="what came")
    low, high = series[start:stop].min(), series[start:stop].max()
    axes[0].set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    axes[0].legend(loc="upper right", fontsize=8)
    for axis, (name, one) in zip(axes[1:], found.items(), strict=True):
        axis.plot(seconds, np.maximum(one.scores[start:stop], 0) / one.height, color="tab:blue", linewidth=0.8)
        axis.axhline(1, color="tab:red", linewidth=0.8, linestyle="--")
        axis.set_ylabel(name)
        axis.set_ylim(0, 3)
    for axis in axes:
        for event in events:
            if event.start < stop:
                axis.axvspan(
                    event.start / rate, (event.stop + 0.02 * rate) / rate, color="tab:orange", alpha=0.3, linewidth=0
                )
    for event in events:
        if event.start < stop:
            axes[0].text(event.start / rate, axes[0].get_ylim()[1], event.kind, fontsize=8, va="bottom")
    axes[-1].set_xlabel("seconds; scores as parts of an alarm's height")
    with written_beside(path) as beside:
        figure.savefig(beside, dpi=110, format="png")


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("series", type=Path, help="the wheel above, or .npz, .npy, .csv or .txt, (T,) or (T, channels)")
    parser.add_argument("--channel", type=int, default=0, help="of the series (default: 0)")
    parser.add_argument("--rate", type=float, default=360.0, help="samples a second (default: 360)")
    names = [info.name for info in longstream.list_models() if info.name not in ("hyena", "edifice-hyena")]
    parser.add_argument("--model", choices=names, default="hgrn2", help="any without an end (default: hgrn2)")
    parser.add_argument("--hidden-size", type=int, default=48, help="(default: 48)")
    parser.add_argument("--ahead", type=int, default=2, help="samples to forecast (default: 2)")
    parser.add_argument("--minutes", type=float, default=1.5, help="of training (default: 1.5)")
    parser.add_argument("--false-alarms", type=float, default=2, help="a minute, for an alarm's height (default: 2)")
    parser.add_argument("--weights", choices=["float32", "bfloat16", "int8"], default="float32", help="of the stream")
    parser.add_argument("--picture", type=Path, help="a PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    args = parser.parse_args()
    for name, least in (("minutes", 0), ("rate", 0), ("ahead", 0), ("hidden_size", 0)):
        if not least < getattr(args, name) < float("inf"):
            parser.error(f"--{name.replace('_', '-')} must be > 0, got {getattr(args, name)}")
    if args.picture and args.picture.exists():
        parser.error(f"--picture: {args.picture} exists already")
    try:
        return run(args)
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    sys.exit(main())

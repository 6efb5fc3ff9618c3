"""A bot that plays at 60 frames a second and is rolled back every few frames, from training to the last answer.

    pip install 'longstream[train]'
    python examples/realtime_bot.py                  # trains for two minutes, then plays for half a minute
    python examples/realtime_bot.py --seconds 600    # plays again: the trained bot lies in a file
    python examples/realtime_bot.py --weights int8   # the same bot with int8 weights
    python examples/realtime_bot.py --model hgrn2    # another model

The game, the expert that is imitated and the connection are in arena.py: 287 numbers a frame, and now and then a sign
that must be answered long after it went out. A second bot is trained beside the first whose memory is cut off after
each frame; what it gets wrong is what memory is for.

Recorded matches then come in by the clock over a connection on which the other player's inputs are late: every few
frames the last 1 to 10 turn out to have been wrong, are taken back (`Stream.rollback`), and the true ones are answered
within the time of one frame. In the end all outputs are compared, bit for bit, with those of a stream that was never
rolled back. Where they differ the program ends with 1.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from arena import FRAME, MATCH, MOST_LATE, MOVES, RATE, SIGNS, Arrival, Recording, connection, record
from realtime_screen import Tally, screen
from rich.console import Console
from rich.live import Live
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import longstream
from longstream.models import parameter_groups
from longstream.stream import Stream, unbounded
from longstream.train.rundir import written_beside

FORMAT = "longstream.examples.realtime_bot"
PIECE = 240  # frames of a match to learn from: some times longer than from a sign to its flag
console = Console(highlight=False, soft_wrap=True)


class Bot(nn.Module):
    """Frames in, scores of moves and buttons out: a model of frames and a linear map."""

    def __init__(self, model: str, hidden_size: int, layers: int):
        super().__init__()
        frames = (
            MATCH if "hyena" in model else 90
        )  # the longest match; for the others what their gates remember at first
        sizes = {"embed_dim": FRAME, "hidden_size": hidden_size, "num_layers": layers}
        self.features = longstream.build(model, **sizes, window_size=frames, dropout=0.0)
        self.head = nn.Linear(hidden_size, len(MOVES) + 1 + SIGNS)

    def forward(self, frames: Tensor, *, memory: bool = True) -> tuple[Tensor, Tensor]:
        """(B, T, 287) -> scores of moves (B, T, 4) and buttons (B, T, 5); without memory, each frame is the first."""
        x = frames if memory else frames.reshape(-1, 1, FRAME)
        return self.read(self.features(x, outputs="all")[0].reshape(*frames.shape[:2], -1))

    def read(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The scores that the model's vectors stand for."""
        moves, buttons = self.head(hidden).split([len(MOVES), 1 + SIGNS], dim=-1)
        return moves, buttons


def pieces(seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Without end: frames, actions and where flags go up in four fresh matches that the expert played."""
    number = 2 * 10**6 * seed  # even; what is measured or played is odd
    while True:
        many = record(32, PIECE, seed=number)
        for rows in np.split(np.arange(32), 8):
            yield tuple(torch.from_numpy(a[rows]) for a in (many.frames, many.actions, many.script.asked))  # type: ignore[misc]
        number += 2


def train(bot: Bot, seconds: float, seed: int, *, memory: bool = True) -> None:
    """Imitate the expert for so long: cross entropy of moves, of buttons, and again of those where flags go up."""
    optimizer = torch.optim.AdamW(parameter_groups(bot, lr=2e-3, weight_decay=0.01))
    highest = [group["lr"] for group in optimizer.param_groups]
    began = said = time.perf_counter()
    for step, (frames, actions, asked) in enumerate(pieces(seed), start=1):
        done = min((time.perf_counter() - began) / seconds, 1.0)
        for group, lr in zip(optimizer.param_groups, highest, strict=True):
            group["lr"] = lr * min(step / 20, 1.0) * (1.02 - done)
        moves, buttons = bot(frames, memory=memory)
        loss = F.cross_entropy(moves.flatten(0, 1), actions[..., 0].flatten())
        loss = loss + F.cross_entropy(buttons.flatten(0, 1), actions[..., 1].flatten())
        loss = loss + 0.5 * F.cross_entropy(buttons[asked], actions[..., 1][asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(bot.parameters(), 1.0)
        optimizer.step()
        now = time.perf_counter()
        if now - began >= seconds or now - said >= 10:
            said = now
            console.print(f"  {now - began:4.0f} s, {step} steps: loss {loss.item():.3f}")
        if now - began >= seconds:
            return


@torch.no_grad()
def measure(bot: Bot, seed: int, *, memory: bool = True) -> dict[str, float]:
    """Shares of right moves, and of right answers where a flag goes up, in matches that nobody learned from."""
    matches = record(24, MATCH, seed=2 * seed + 1)
    moves, buttons = bot(torch.from_numpy(matches.frames), memory=memory)
    actions, asked = torch.from_numpy(matches.actions), matches.script.asked
    right_moves = moves.argmax(-1) == actions[..., 0]
    right_answers = (buttons.argmax(-1) == actions[..., 1])[torch.from_numpy(asked)]
    return {"moves": right_moves.float().mean().item(), "answers": right_answers.float().mean().item()}


def make_bot(args: argparse.Namespace) -> tuple[Bot, dict[str, Any]]:
    """The bot of the file, or a new one, trained and saved there; and what is known of it."""
    asked = {"model": args.model, "hidden_size": args.hidden_size, "layers": args.layers, "seed": args.seed}
    torch.manual_seed(args.seed)
    bot = Bot(args.model, args.hidden_size, args.layers)
    if args.file.exists() and not args.retrain:
        found = load(bot, args.file, asked)
        console.print(f"{args.file}: a bot that was trained for {found['seconds']:.0f} s; --retrain makes a new one")
        return bot.eval(), found
    if not args.file.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {args.file.parent} to write {args.file.name} in")
    began = time.perf_counter()
    size = sum(parameter.numel() for parameter in bot.parameters())
    console.print(f"training {args.model}, {size:,} parameters, {torch.get_num_threads()} threads")
    train(bot, 48 * args.minutes, args.seed)
    console.print("training the same without memory")
    blind = Bot(args.model, args.hidden_size, args.layers)
    train(blind, 12 * args.minutes, args.seed, memory=False)
    found = {**asked, "seconds": time.perf_counter() - began, "bot": measure(bot.eval(), args.seed)}
    found["without memory"] = measure(blind.eval(), args.seed, memory=False)
    with written_beside(args.file) as beside:
        save_file(bot.state_dict(), beside, metadata={"format": FORMAT, "about": json.dumps(found)})
    console.print(f"trained for {found['seconds']:.0f} s, saved as {args.file}")
    return bot, found


def load(bot: Bot, path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Read the weights of a file that `make_bot` wrote; what it says of them."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise ValueError("it is a safetensors file of something else")
            found = json.loads(about["about"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no bot of this example: {error}") from error
    if differ := [f"{key} is {found[key]}, not {value}" for key, value in asked.items() if found[key] != value]:
        raise ValueError(f"{path} holds another bot ({', '.join(differ)}): choose another --file, or --retrain")
    bot.load_state_dict(tensors)
    return found


Match = tuple[Recording, list[Arrival]]


def recorded_matches(frames: int, seed: int) -> list[Match]:
    """So many frames of matches that nobody learned from, and how they come in."""
    matches = []
    for number, start in enumerate(range(0, frames, MATCH)):
        recording = record(1, min(MATCH, frames - start), seed=2 * (10**6 * (1 + seed) + number) + 1)
        matches.append((recording, list(connection(recording, seed=number))))
    return matches


@torch.no_grad()
def play(bot: Bot, stream: Stream, matches: list[Match], tally: Tally, live: Live | None) -> Tensor:
    """Answer every frame by the clock; the outputs (frames, D) as they stand after the last rollback."""
    outputs = torch.zeros(tally.frames, bot.features.output_size)
    began, n = time.perf_counter() + 0.1, 0
    for recording, arrivals in matches:
        stream.reset()
        for t, arrival in enumerate(arrivals):
            due = began + n / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
            woke = time.perf_counter()
            if arrival.back:
                stream.rollback(arrival.back)
            for at, frame in enumerate(arrival.frames, start=n - arrival.back):
                stream.step(frame, out=outputs[at])
            moves, buttons = bot.read(outputs[n])
            said = int(moves.argmax()), int(buttons.argmax())  # what the bot does now, and cannot take back
            done = time.perf_counter()
            tally.latencies.append(1000 * (done - due))
            tally.work.append(1000 * (done - woke))
            if arrival.back:
                tally.rollbacks, tally.replayed = tally.rollbacks + 1, tally.replayed + arrival.back
                tally.last_rollback = arrival.back, n, tally.work[-1]
            move, button = recording.actions[0, t]
            tally.right_moves += said[0] == move
            if recording.script.asked[0, t]:
                tally.flags, tally.right_answers = tally.flags + 1, tally.right_answers + (said[1] == button)
            n += 1
            if live and n % 12 == 0 and due + 1 / RATE - done > 0.008:  # drawing takes some milliseconds
                tally.position = int(stream.position)
                live.update(screen(tally, arrival.world, said, recording.script.lamps[0, t]), refresh=True)
    tally.position = int(stream.position)
    return outputs


def without_rollbacks(stream: Stream, matches: list[Match], like: Tensor) -> Tensor:
    """The outputs for the frames as they truly were, one after another."""
    outputs, n = torch.zeros_like(like), 0
    for recording, _ in matches:
        stream.reset()
        for frame in recording.frames[0]:
            stream.step(frame, out=outputs[n])
            n += 1
    return outputs


def run(args: argparse.Namespace) -> int:
    """Train or load, play, compare; 0, or 1 where a rollback left a trace."""
    bot, about = make_bot(args)
    stream = unbounded(bot.features, history=MOST_LATE, weights=args.weights, threads=args.threads)
    why = f" ({stream.why_not})" if stream.why_not else ""
    console.print(f"{args.model}, {stream.weights} weights, backend {stream.backend}{why}")
    for name in ("bot", "without memory"):
        console.print(f"  {name}: {about[name]['moves']:.1%} of moves, {about[name]['answers']:.1%} of signs right")
    matches = recorded_matches(round(args.seconds * RATE), args.seed)
    frames = sum(len(arrivals) for _, arrivals in matches)
    tally = Tally(frames, f"{args.model}, {stream.weights}, {stream.backend}", stream.weight_bytes, stream.nbytes)
    gc.collect()
    gc.disable()  # no collection of garbage in the middle of a frame; a step makes none
    try:
        if args.headless:
            outputs = play(bot, stream, matches, tally, None)
        else:
            with Live(console=console, auto_refresh=False, transient=True) as live:
                outputs = play(bot, stream, matches, tally, live)
    finally:
        gc.enable()
    for name, value in tally.rows():
        console.print(f"{name:>20}: {value}")
    exact = without_rollbacks(stream.fork(1), matches, outputs)
    wrong = int((outputs != exact).any(1).sum())
    if wrong:
        far = (outputs - exact).abs().max().item()
        console.print(f"FAILED: {wrong} of {frames} outputs differ from those without rollbacks, by up to {far:.1e}")
        return 1
    console.print(f"all {frames:,} outputs equal those of a stream without rollbacks, bit for bit")
    return 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [info.name for info in longstream.list_models()]
    parser.add_argument("--model", choices=names, default="edifice-hgrn", help="(default: edifice-hgrn)")
    parser.add_argument("--hidden-size", type=int, default=256, help="(default: 256)")
    parser.add_argument("--layers", type=int, default=2, help="(default: 2)")
    parser.add_argument(
        "--minutes", type=float, default=2.0, help="of training, a fifth of it without memory (default: 2)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="to play (default: 30)")
    parser.add_argument("--weights", choices=["float32", "bfloat16", "int8"], default="float32", help="while playing")
    parser.add_argument("--threads", type=int, default=1, help="of a step; a busy machine delays more (default: 1)")
    parser.add_argument("--file", type=Path, help="the trained bot (default: realtime_bot-MODEL.safetensors)")
    parser.add_argument("--retrain", action="store_true", help="train although there is a file, and replace it")
    parser.add_argument("--headless", action="store_true", help="no display, only the summary")
    parser.add_argument("--seed", type=int, default=0, help="of weights and matches (default: 0)")
    args = parser.parse_args()
    args.file = args.file or Path(f"realtime_bot-{args.model}.safetensors")
    for name in ("minutes", "seconds"):
        if not 0 < getattr(args, name) < float("inf"):
            parser.error(f"--{name} must be > 0, got {getattr(args, name)}")
    try:
        return run(args)
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


if __name__ == "__main__":
    sys.exit(main())

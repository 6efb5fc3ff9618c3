"""What realtime_bot.py counts while it plays, and how a terminal shows it."""

from dataclasses import dataclass, field

import numpy as np
from arena import MOVES, RATE, World
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BUDGET = 1000 / RATE  # milliseconds from one frame to the next
_BARS = " ▁▂▃▄▅▆▇█"
_WIDTH = 64


@dataclass
class Tally:
    """What happened so far."""

    frames: int  # to come in all
    model: str
    weight_bytes: int
    state_bytes: int
    latencies: list[float] = field(default_factory=list)  # milliseconds from a frame's arrival to its answer
    work: list[float] = field(default_factory=list)  # the same, from the moment at which the program woke up
    position: int = 0  # of the stream: frames that it has taken in since the match began
    rollbacks: int = 0
    replayed: int = 0
    last_rollback: tuple[int, int, float] = (0, 0, 0.0)  # frames, at which frame, milliseconds with the replay
    right_moves: int = 0
    flags: int = 0
    right_answers: int = 0

    @property
    def misses(self) -> int:
        """Answers that left after the next frame had come."""
        return sum(latency > BUDGET for latency in self.latencies)

    def rows(self) -> list[tuple[str, str]]:
        """The numbers in words."""
        n = max(len(self.latencies), 1)
        back, frame, took = self.last_rollback
        last = f"; the last one: {back} at frame {frame:,}, {took:.2f} ms" if back else ""
        answers = f"{self.right_answers} of {self.flags} signs" if self.flags else "no sign yet"
        return [
            ("frame", f"{len(self.latencies):,} of {self.frames:,}; the state is {self.position} frames old"),
            ("answer after arrival", spread(self.latencies)),
            ("of this at work", spread(self.work)),
            ("deadline misses", f"{self.misses} (more than {BUDGET:.2f} ms)"),
            ("rollbacks", f"{self.rollbacks} of {self.replayed} frames in all{last}"),
            ("right", f"{self.right_moves / n:.1%} of moves, {answers}"),
            ("memory", f"{self.state_bytes:,} bytes of state with its history, {self.weight_bytes:,} of weights"),
        ]


def spread(milliseconds: list[float]) -> str:
    """Median, 99th percentile and worst."""
    if not milliseconds:
        return "-"
    p50, p99, worst = np.percentile(milliseconds, [50, 99, 100])
    return f"p50 {p50:.2f}, p99 {p99:.2f}, worst {worst:.2f} ms"


def screen(tally: Tally, world: World, said: tuple[int, int], lamps: np.ndarray) -> Panel:
    """The arena, the last answers' latencies as bars, and the numbers."""
    ground, air = ["·"] * _WIDTH, [" "] * _WIDTH
    for (x, y), letter in zip(world.position[0], "Bo", strict=True):  # the bot and the other player
        (air if y > 0 else ground)[round((x + 1) / 2 * (_WIDTH - 1))] = letter
    signs = "".join(str(1 + i) if lamp else "·" for i, lamp in enumerate(lamps[:4]))
    button = f" presses {said[1]}" if said[1] else ""
    stage = Text(f"sign {signs}  {'FLAG' if lamps[4] else '    '}  the bot: {MOVES[said[0]]}{button}")
    recent = tally.latencies[-_WIDTH:]
    bars = "".join(_BARS[min(int(latency / BUDGET * 8) + 1, 8)] for latency in recent)
    table = Table.grid(padding=(0, 2))
    for name, value in tally.rows():
        bad = name == "deadline misses" and tally.misses
        table.add_row(Text(name, style="dim"), Text(value, style="bold red" if bad else ""))
    return Panel(
        Group(Text("".join(air)), Text("".join(ground)), stage, Text(bars, style="cyan"), table),
        title=tally.model,
        width=100,
    )

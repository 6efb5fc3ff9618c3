"""A task that begins easy: its fields go from where they start to what they are, over a part of the run."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from longstream.tasks import make_task
from longstream.tasks._base import TokenTask

STEPS_LOOKED_AT = 1000  # of a curriculum, before it begins


@dataclass(frozen=True)
class Curriculum:
    """``task`` at the end, ``start`` at the beginning, and in between numbers in between, in a straight line.

    Recall has a plateau that training from its full difficulty may not leave: with one pair there is nothing to look
    up, with two there is, and what was learned there holds for eight.

    Args:
        task:  what is asked in the end, and of what is held out.
        start: the same task with easier fields; its tokens are the same, and it is no longer.
        ratio: the part of the run, in (0, 1], at whose end ``task`` itself is reached.
    """

    task: TokenTask
    start: TokenTask
    ratio: float

    def at(self, progress: float) -> TokenTask:
        """The task after this part of the run, of [0, 1]."""
        part = min(1.0, progress / self.ratio)
        changed = {}
        for field in fields(self.task):
            first, last = getattr(self.start, field.name), getattr(self.task, field.name)
            if first != last:
                changed[field.name] = _between(first, last, part)
        return replace(self.task, **changed)


def read_curriculum(task: TokenTask, start: str, ratio: float) -> Curriculum:
    """The curriculum of a task whose fields begin as ``start`` says, in the words of `make_task` behind its colon.

    Raises:
        ValueError: unknown fields, ones that are no numbers, or that change the tokens or make it longer.
    """
    given = [part for part in task.describe().partition(":")[2].split(",") if part]
    changed = {part.partition("=")[0].strip() for part in start.split(",")}
    kept = [part for part in given if part.partition("=")[0] not in changed]
    easy = make_task(f"{task.name}:{','.join([*kept, start])}")
    for field in fields(task):
        first, last = getattr(easy, field.name), getattr(task, field.name)
        if first != last and (isinstance(last, bool | str) or not isinstance(last, int | float)):
            raise ValueError(f"DataSettings.generator_start must change numbers, got {field.name}={first!r}")
    if easy.vocab_size != task.vocab_size or easy.length > task.length:
        raise ValueError(
            f"DataSettings.generator_start must leave {task.describe()} its {task.vocab_size:,} tokens, and at most"
            f" its length of {task.length:,}, got {easy.vocab_size:,} and {easy.length:,}"
        )
    found = Curriculum(task, easy, ratio)
    for i in range(STEPS_LOOKED_AT):
        try:
            found.at(ratio * i / STEPS_LOOKED_AT)
        except ValueError as error:
            raise ValueError(
                f"DataSettings.generator_start: on the way from {easy.describe()} to {task.describe()} there is no"
                f" task: {error}"
            ) from None
    return found


def _between(first: float, last: float, part: float) -> float:
    """A number of the line; whole ones in steps of what divides both ends, as generators may want even lengths."""
    if not isinstance(first, int) or not isinstance(last, int):
        return first * (1 - part) + last * part
    step = math.gcd(first, last) or 1
    return first + step * round((last - first) * part / step)

"""A study of seconds that goes through everything: three seeds, a tuned value, two rounds, figures measured alone."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from longstream.studies.study import Claim, Metric, Picture, Plan, Published, Result, Run, Study
from longstream.studies.worker import attempt

TEXT = "".join(f"line {i * i % 97} of the text is {'short' if i % 3 else 'a little longer'}.\n" for i in range(400))
BASE = {
    "model.hidden_size": 16,
    "model.num_hidden_layers": 1,
    "model.intermediate_size": 16,
    "data.seq_len": 16,
    "train.batch_size": 2,
    "train.eval_every": 0,
    "train.save_every": 8,
    "train.log_every": 1,
    "train.sample_tokens": 0,
}


def write_data(folder: Path) -> Path:
    """The text that the runs read."""
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(TEXT)
    return folder


def declare(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """Two rates on seed 0; then the state of 16 with the better one, on the other seeds."""
    assert plan.data is not None
    base = {**BASE, "data.files": [str(plan.data / "text.txt")], "train.steps": plan.steps(20)}

    def run(n: int, seed: int, rate: float) -> Run:
        settings = {**base, "model.expand_ratio": n, "train.learning_rate": rate}
        return Run(
            group="language", variant=f"n={n}", seed=seed, settings=settings, choice=f"lr={rate:g}", x=n, minutes=n
        )

    runs = [run(2, seed, 3e-3) for seed in plan.seeds]
    runs += [run(16, plan.seeds[0], rate) for rate in (1e-3, 1e-2)]
    if tried := [result for result in done if result.run.variant == "n=16"]:
        best = min(tried, key=lambda result: result.measured["loss"])
        runs += [run(16, seed, best.run.settings["train.learning_rate"]) for seed in plan.seeds[1:]]
    return runs


def measure(run: Run, folder: Path) -> Mapping[str, float]:
    """The state's size, which is known."""
    assert (folder / "model.safetensors").is_file()
    return {"state": 16 * float(run.x or 0)}


def alone(plan: Plan, folder: Path) -> Mapping[tuple[str, str], Mapping[str, float]]:
    """Bytes on the disk, of a run of each variant."""
    sizes = {n: (folder / name / "model.safetensors").stat().st_size for n, name in _first(folder).items()}
    return {("language", f"n={n}"): {"size": size} for n, size in sizes.items()}


def _first(folder: Path) -> dict[int, str]:
    return {n: sorted(folder.glob(f"language-n={n}-*-seed0"))[0].name for n in (2, 16)}


STUDY = Study(
    name="tiny",
    title="Does a bigger state help?",
    question="Whether n = 16 is better than n = 2 after 20 steps.",
    runs=declare,
    metrics=(
        Metric(key="bits_per_byte", label="bits per byte", higher=False, digits=4),
        Metric(key="state", label="state", higher=False, digits=0),
        Metric(key="size", label="bytes", higher=False, digits=0),
    ),
    claims=(
        Claim(
            text="a bigger state is better",
            source="nobody",
            group="language",
            metric="bits_per_byte",
            better="n=16",
            worse="n=2",
        ),
    ),
    minutes={"small": 2.0, "medium": 20.0},
    pictures=(
        Picture(
            name="state", title="Bits per byte", metric="bits_per_byte", groups=("language",), x="state size", log_x=2
        ),
    ),
    published=(Published(what="bits per byte", value="1.0", source="a book", note="other data"),),
    measure=measure,
    alone=alone,
    choose=("loss", False),
    notes=("Tiny models.",),
)


class HerePool:
    """In place of `pool.Pool`: the same training in this process, which has imported all that it takes."""

    kernels = ""
    at_work: Sequence[Run] = ()

    def __init__(self, module: str, folder: Path, jobs: int, log: IO[str]) -> None:
        self.module, self.folder = module, folder
        self.trained: list[str] = []
        POOLS.append(self)

    def train(
        self, runs: Sequence[Run], stop: Mapping[str, str], every: float = 0.5
    ) -> Iterator[tuple[Run, dict[str, Any]] | None]:
        """As `Pool.train`."""
        for run in runs:
            if not stop:
                self.trained.append(run.name)
                yield run, attempt(self.module, run, self.folder / run.name)

    def interrupt(self) -> None:
        """Nothing runs beside."""

    def close(self) -> None:
        """Nothing to end."""


POOLS: list[HerePool] = []  # the last one is that of the last session

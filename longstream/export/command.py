"""The verb `longstream export`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# What export.run knows by these names, written out so that --help need not load it; a test compares them.
FORMS = ("onnx", "pt2")
GRAPHS = ("step", "chunk", "both")
HYENA = ("auto", "exact", "modal")


def add_export_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Write a trained model as a graph for other runtimes: one step, or a chunk of them, with\n"
        "the state as named inputs and outputs. The graph is run beside the model before it is\n"
        "put in place."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "docs/export.md has the names, the Python runner, and a C++ program."
    parser.add_argument("run", metavar="RUN", help="run directory, or a checkpoint of one")
    parser.add_argument("--to", choices=FORMS, default="onnx", help="ONNX, or an archive of torch.export [onnx]")
    parser.add_argument(
        "--graph", choices=GRAPHS, default="step", help="a step, a chunk of steps, or a file each [step]"
    )
    parser.add_argument("--out", metavar="PATH", help="file.onnx, file.pt2, or a folder [RUN/export]")
    parser.add_argument(
        "--chunk-length", type=_length, metavar="N", help="tokens of a chunk, or dynamic: any number [dynamic]"
    )
    parser.add_argument(
        "--hyena",
        choices=HYENA,
        default="auto",
        help="exact past of the filters, or their modes [as the model decodes]",
    )
    parser.add_argument("--modes", type=int, metavar="M", help="fit M modes to Hyena's filters, for --hyena modal")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="of the comparison with the model [1000]")
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, metavar="X", help="largest relative difference allowed [1e-4]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def run_export(args: argparse.Namespace) -> int:
    """Export a run, and print what was written and how close it is.

    Raises:
        ValueError, OSError: as of `longstream.export.export`, and of loading the run.
        ModuleNotFoundError: a package is missing; the message names the extra.
    """
    from longstream.export.run import export

    model, about = _load(Path(args.run))
    report = export(
        model,
        Path(args.run, "export") if args.out is None else args.out,
        to=args.to,
        graph=args.graph,
        chunk_length=args.chunk_length,
        hyena=args.hyena,
        modes=args.modes,
        steps=args.steps,
        tolerance=args.tolerance,
        overwrite=args.overwrite,
        about=about,
        tell=_tell,
    )
    for file in report.files.values():
        _tell(f"{'wrote':<12} {file}")
    return 0


def _load(path: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a run, and what a graph's metadata should say of its tokenizer."""
    from longstream.train.loading import SEQUENCE_MODEL, load_run, read_model_type

    if read_model_type(path) == SEQUENCE_MODEL:
        from longstream.sequences import SequenceModel

        return SequenceModel.from_pretrained(path), {}
    model, tokenizer = load_run(path)
    about: dict[str, Any] = {"type": type(tokenizer).__name__, "boundary_id": tokenizer.boundary_id}
    file = path / "tokenizer.json"
    if file.is_file():
        about["json"] = file.read_text(encoding="utf-8")
    return model, {"tokenizer": about}


def _length(text: str) -> int | None:
    if text != "dynamic" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be dynamic or a number, got {text!r}")
    return None if text == "dynamic" else int(text)


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

"""The verb `longstream convert`."""

from __future__ import annotations

import argparse
import sys

# What convert.run knows by these names, written out so that --help need not load it; a test compares them.
FORMATS = ("longstream", "fla", "hyenadna", "opennlplab", "axon")
TARGETS = ("longstream", "fla", "hyenadna", "axon")
DTYPES = ("float64", "float32", "float16", "bfloat16")
LOGITS = ("auto", "whole", "never")


def add_convert_flags(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.description = (
        "Write a checkpoint in another format, and prove it: both sides are read and compared\n"
        "before the target is put in place. Tensors pass one at a time."
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "\n".join(
        [
            "formats:",
            "  longstream  our own: any model, names and configuration of longstream",
            "  fla         flash-linear-attention's HGRN and HGRN2, of every version",
            "  hyenadna    LongSafari/*-hf; read also: the authors' weights.ckpt and config.json",
            "  axon        Edifice's models, .npz or .safetensors, from and to a file of ours",
            "  opennlplab  the HGRN and HGRN2 models of their authors (read only)",
        ]
    )
    parser.add_argument("source", metavar="SRC", help="folder, file of weights, or name on the hub")
    parser.add_argument("target", metavar="DST", help="folder to write; a file for a model of frames")
    parser.add_argument("--to", required=True, choices=TARGETS, help="format to write")
    parser.add_argument("--from", dest="source_format", choices=FORMATS, help="format of SRC [looks]")
    parser.add_argument("--dtype", choices=DTYPES, help="round to it [as it is]")
    parser.add_argument("--config", metavar="FILE", help="JSON in place of SRC's config.json; seq_len etc. for axon")
    parser.add_argument(
        "--logits", choices=LOGITS, default="auto", help="compare outputs [auto: large models layer by layer]"
    )
    parser.add_argument("--shard", type=float, default=4.0, metavar="GB", help="most in one file of weights [4]")
    parser.add_argument("--overwrite", action="store_true", help="replace DST")


def run_convert(args: argparse.Namespace) -> int:
    """Convert, and print what was done and proved.

    Raises:
        ValueError, OSError: as of `longstream.convert.convert`.    ModuleNotFoundError: transformers is missing.
    """
    from longstream.convert.run import convert

    report = convert(
        args.source,
        args.target,
        to=args.to,
        source_format=args.source_format,
        dtype=args.dtype,
        overwrite=args.overwrite,
        config=args.config,
        logits=args.logits,
        shard_gigabytes=args.shard,
        tell=_tell,
    )
    for file in report.files:
        _tell(f"wrote        {file}")
    return 0


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

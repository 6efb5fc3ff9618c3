"""Score the variants of a list by a model of DNA, and embed the places where they lie.

    python examples/dna_variants.py MODEL genome.fa.gz variants.csv --both-strands --embeddings windows.npz > scores.csv

MODEL is a folder with a HyenaDNA checkpoint, such as LongSafari/hyenadna-tiny-1k-seqlen-hf, or one that
`longstream train --tokenizer dna` wrote. The list is a VCF file, or a CSV file with columns chrom, pos (from 1), ref
and alt. A score is log p(with the change) - log p(without), in nats: the lower, the less the model expects the change.
"""

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

import longstream.hf  # noqa: F401  its import makes the Auto classes know its models
from longstream.hf.dna import embed, parse_variants, score_variants, variant_windows
from longstream.sequences.fasta import fasta_records
from longstream.train.rundir import written_beside


def main() -> None:
    """Read the arguments, score, write a line for each variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder of a language model of DNA")
    parser.add_argument("genome", type=Path, help="FASTA, also gzipped")
    parser.add_argument("variants", type=Path, help="VCF, CSV or TSV: chrom, pos, ref, alt")
    parser.add_argument("--size", type=int, help="bases of a window (default: 1024, or less if the model takes less)")
    parser.add_argument("--both-strands", action="store_true", help="the mean over both strands")
    parser.add_argument("--batch-size", type=int, default=8, help="windows in one call of the model (default: 8)")
    parser.add_argument("--embeddings", type=Path, help="write the mean hidden state of each unchanged window, .npz")
    arguments = parser.parse_args()
    try:
        run(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {' '.join(str(error).split())}\n")


def run(arguments: argparse.Namespace) -> None:
    """Score the variants on standard output, and write the embeddings where they are asked for."""
    with arguments.variants.open(encoding="utf-8") as lines:
        variants = parse_variants(lines, str(arguments.variants))
    if not arguments.model.is_dir():
        raise FileNotFoundError(
            f"no folder {arguments.model}: fetch a checkpoint with hf download NAME --local-dir FOLDER"
        )
    if arguments.embeddings is not None:
        check_new_npz(arguments.embeddings)
    genome = dict(fasta_records(arguments.genome))
    model = AutoModelForCausalLM.from_pretrained(arguments.model).eval()
    size = arguments.size
    if size is None:
        size = min(1024, getattr(model.config, "max_position_embeddings", None) or 1024)
    options = {"size": size, "batch_size": arguments.batch_size}
    scores = score_variants(model, genome, variants, both_strands=arguments.both_strands, **options)
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["chrom", "pos", "ref", "alt", "score"])
    for variant, score in zip(variants, scores, strict=True):
        table.writerow([*variant, f"{score:.4f}"])
    if arguments.embeddings is not None:
        windows = [variant_windows(variant, genome, size).ref for variant in variants]
        names = np.array([str(variant) for variant in variants])
        means = embed(model, windows, batch_size=arguments.batch_size)
        with written_beside(arguments.embeddings) as beside:
            np.savez(beside, embeddings=means, names=names)


def check_new_npz(path: Path) -> None:
    """Refuse, before anything is computed, a file that cannot or must not be written."""
    if path.suffix != ".npz":
        raise ValueError(f"--embeddings must be a file ending in .npz, got {path}")
    if path.exists():
        raise FileExistsError(f"{path} exists already")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} in")


if __name__ == "__main__":
    main()

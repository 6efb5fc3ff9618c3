"""Scores of variants and embeddings of windows of a genome, by a model of HyenaDNA's tokens."""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longstream.hf.dna_tokenizer import BASES, VOCABULARY, encode_bases

_COLUMNS = {
    "chromosome": ("chrom", "#chrom", "chromosome", "chr"),
    "position": ("pos", "position"),
    "ref": ("ref", "reference"),
    "alt": ("alt", "alternative"),
}
_COMPLEMENT = bytes.maketrans(b"ACGTNacgtn", b"TGCANtgcan")


class Variant(NamedTuple):
    """A change of a genome as VCF writes it: the bases ``ref`` that begin at ``position``, from 1, become ``alt``."""

    chromosome: str
    position: int
    ref: str
    alt: str

    def __str__(self) -> str:
        return f"{self.chromosome}:{self.position} {self.ref}>{self.alt}"


def parse_variants(lines: Iterable[str], source: str = "variants") -> list[Variant]:
    """Variants out of the lines of a VCF file, or of a CSV or TSV file with columns chrom, pos, ref and alt.

    Several alternatives, with commas between them as in VCF, make several variants.

    Raises:
        ValueError: a column is missing, a position is not a number from 1, an allele is not of A, C, G, T and N, or
            there is no variant.
    """
    kept = [(number, line) for number, line in enumerate(lines, 1) if line.strip() and not line.startswith("##")]
    header = kept[0][1].rstrip("\r\n") if kept else ""
    separator = "\t" if "\t" in header else ","
    names = [name.strip().lower() for name in header.split(separator)]
    places = {key: next((names.index(a) for a in aliases if a in names), None) for key, aliases in _COLUMNS.items()}
    if lacking := [_COLUMNS[key][0] for key, place in places.items() if place is None]:
        raise ValueError(f"{source}: the first line must name columns chrom, pos, ref, alt, got none for {lacking}")
    found = []
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    table = csv.reader((line for _, line in kept[1:]), delimiter=separator, quoting=quoting)
    for (number, _), cells in zip(kept[1:], table, strict=False):
        if len(cells) < len(names):
            raise ValueError(f"{source}, line {number}: expected {len(names)} columns, got {len(cells)}")
        row = {key: cells[place].strip() for key, place in places.items() if place is not None}
        if not re.fullmatch(r"[0-9]+", row["position"]) or int(row["position"]) < 1:
            raise ValueError(f"{source}, line {number}: pos must be a number from 1, got {row['position']!r}")
        for alt in row["alt"].split(","):
            for allele in (row["ref"], alt):
                if not re.fullmatch("[ACGTNacgtn]+", allele):
                    raise ValueError(f"{source}, line {number}: alleles must be of A, C, G, T and N, got {allele!r}")
            found.append(Variant(row["chromosome"], int(row["position"]), row["ref"].upper(), alt.upper()))
    if not found:
        raise ValueError(f"{source}: expected variants, got none")
    return found


class Windows(NamedTuple):
    """The surroundings of a variant, without and with the change."""

    ref: bytes
    alt: bytes


def variant_windows(variant: Variant, genome: Mapping[str, bytes], size: int) -> Windows:
    """The at most ``size`` bases with the variant in their middle; less where the chromosome ends.

    Args:
        genome: upper-case bases of each chromosome.
    Raises:
        ValueError: the chromosome is unknown, does not have the bases of ``ref`` there, or size is less than an allele.
    """
    if variant.chromosome not in genome:
        known = ", ".join(list(genome)[:8]) + (", ..." if len(genome) > 8 else "")
        raise ValueError(f"{variant}: chromosome must be one of {known}, got {variant.chromosome}")
    bases = genome[variant.chromosome]
    start, stop = variant.position - 1, variant.position - 1 + len(variant.ref)
    if variant.position < 1 or bases[start:stop] != variant.ref.encode():
        there = bases[max(start, 0) : stop].decode("ascii", "replace") or f"an end after {len(bases)} bases"
        raise ValueError(f"{variant}: the genome must have {variant.ref} there, got {there}")
    flanks = size - max(len(variant.ref), len(variant.alt))
    if flanks < 1:
        raise ValueError(f"{variant}: the window must be longer than the alleles, got {size} bases")
    left = bases[max(start - flanks // 2, 0) : start]
    right = bases[stop : stop + flanks - len(left)]
    left = bases[max(start - (flanks - len(right)), 0) : start]  # more of it where the chromosome ends on the right
    return Windows(left + variant.ref.encode() + right, left + variant.alt.encode() + right)


def score_variants(
    model: Any,
    genome: Mapping[str, bytes],
    variants: Sequence[Variant],
    *,
    size: int = 1024,
    both_strands: bool = False,
    batch_size: int = 8,
) -> np.ndarray:
    """log p(window with alt) - log p(window with ref), in nats, (n,) float64: below 0 where the change is less likely.

    Both windows have the same surroundings, and the sum goes over the bases from the change on: those before it are
    the same, and a causal model has not seen the change there.

    Args:
        model:        a causal language model of HyenaDNA's 12 tokens.
        genome:       upper-case bases of each chromosome.
        size:         bases of a window.
        both_strands: the mean of this and the same on the reverse complement, where the model sees the other side.
        batch_size:   windows in one call of the model.
    Raises:
        ValueError: the model has other tokens, or is too short for the windows; and what `variant_windows` raises.
    """
    windows = [variant_windows(variant, genome, size) for variant in variants]
    scores = _differences(model, windows, batch_size)
    if both_strands:
        scores = (scores + _differences(model, [_reversed(each) for each in windows], batch_size)) / 2
    return scores


def log_likelihoods(
    model: Any, sequences: Sequence[bytes], starts: Sequence[int] | None = None, *, batch_size: int = 8
) -> np.ndarray:
    """Sums of log p(base | bases before it), in nats, (n,) float64.

    Args:
        model:     a causal language model of HyenaDNA's 12 tokens.
        sequences: bases.
        starts:    of each sequence, the first base to count; by default the second, as nothing precedes the first.
    """
    starts = [1] * len(sequences) if starts is None else starts
    sums = []
    for first, ids, mask in _batches(model, sequences, batch_size):
        with torch.inference_mode():
            logits = model(ids, attention_mask=mask, use_cache=False).logits[..., : model.config.vocab_size]
        log_p = logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # of the bases from 1 on
        columns = torch.arange(1, ids.shape[1], device=ids.device)
        begin = torch.tensor(starts[first : first + len(ids)], device=ids.device)
        counts = (columns >= begin[:, None]) & mask[:, 1:].bool()
        sums.append(torch.where(counts, log_p, 0.0).sum(1).cpu().numpy())
    return np.concatenate(sums) if sums else np.zeros(0)


def embed(model: Any, sequences: Sequence[bytes], *, batch_size: int = 8) -> np.ndarray:
    """The mean over a sequence of the hidden states after the last norm, (n, D) float32.

    Args:
        model:     a model of HyenaDNA's 12 tokens, with or without a head.
        sequences: bases.
    """
    means = []
    for _, ids, mask in _batches(model, sequences, batch_size):
        with torch.inference_mode():
            y = model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        means.append(((y.float() * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)).cpu().numpy())
    return np.concatenate(means) if means else np.zeros((0, model.config.hidden_size), np.float32)


def reverse_complement(bases: bytes) -> bytes:
    """The other strand, read in its direction."""
    return bases.translate(_COMPLEMENT)[::-1]


def _reversed(windows: Windows) -> Windows:
    return Windows(reverse_complement(windows.ref), reverse_complement(windows.alt))


def _differences(model: Any, windows: Sequence[Windows], batch_size: int) -> np.ndarray:
    both = [window for each in windows for window in each]
    starts = [max(_shared(*each), 1) for each in windows for _ in each]
    sums = log_likelihoods(model, both, starts, batch_size=batch_size)
    return sums[1::2] - sums[::2]


def _shared(a: bytes, b: bytes) -> int:
    """How many bases two windows have in common at their beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _batches(model: Any, sequences: Sequence[bytes], batch_size: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of the first, ids (B, T) and mask (B, T), padded on the right."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    if model.config.vocab_size != len(VOCABULARY):
        raise ValueError(
            f"the model must have HyenaDNA's {len(VOCABULARY)} tokens, {BASES} and special ones, got "
            f"{model.config.vocab_size}"
        )
    limit = getattr(model.config, "max_position_embeddings", None)
    for first in range(0, len(sequences), batch_size):
        batch = sequences[first : first + batch_size]
        lengths = [len(sequence) for sequence in batch]
        if min(lengths) < 1:
            raise ValueError("every sequence must have a base, got an empty one")
        if limit is not None and max(lengths) > limit:
            raise ValueError(f"windows must have at most {limit} bases, the model's longest text, got {max(lengths)}")
        ids = torch.full((len(batch), max(lengths)), VOCABULARY["[PAD]"])
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(batch):
            ids[row, : len(sequence)] = torch.from_numpy(encode_bases(sequence)).long()
            mask[row, : len(sequence)] = 1
        yield first, ids.to(model.device), mask.to(model.device)

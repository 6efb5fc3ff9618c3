"""Variants and windows of a genome, scored and embedded; and the example that does it from files."""

import csv
import gzip
import io
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longstream.hf import HyenaDNAConfig, HyenaDNAForCausalLM, HyenaDNAForSequenceClassification
from longstream.hf.dna import (
    Variant,
    embed,
    log_likelihoods,
    parse_variants,
    reverse_complement,
    score_variants,
    variant_windows,
)

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)
GENOME = {name: bytes(RNG.choice(list(b"ACGT"), n).tolist()) for name, n in (("chr1", 300), ("chr2", 40))}
TINY: dict[str, Any] = {
    "d_model": 16,
    "n_layer": 2,
    "max_seq_len": 66,
    "filter_order": 8,
    "emb_dim": 5,
    "activation_freq": 10,
}


def tiny(cls: Any = HyenaDNAForCausalLM) -> Any:
    torch.manual_seed(0)
    model = cls(HyenaDNAConfig(**TINY)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def substitution(chromosome, position):
    ref = chr(GENOME[chromosome][position - 1])
    return Variant(chromosome, position, ref, next(base for base in "ACGT" if base != ref))


def whole(model, bases):
    """The log-likelihood of all bases but the first, straight from the logits."""
    ids = torch.tensor([[dict(zip(b"ACGTN", range(7, 12), strict=True))[base] for base in bases]])
    log_p = model(ids).logits[0, :, :12].detach().double().log_softmax(-1)
    return sum(float(log_p[t - 1, ids[0, t]]) for t in range(1, len(bases)))


def test_log_likelihoods():
    model = tiny()
    sequences = [GENOME["chr1"][:50], GENOME["chr2"], b"ACN", b"A"]
    expected = [whole(model, bases) for bases in sequences]
    for batch_size in (1, 3, 8):
        assert np.allclose(log_likelihoods(model, sequences, batch_size=batch_size), expected, atol=1e-4)
    late = log_likelihoods(model, sequences[:1], [20])
    assert np.allclose(late, whole(model, sequences[0]) - whole(model, sequences[0][:20]), atol=1e-4)
    assert log_likelihoods(model, []).shape == (0,)


@pytest.mark.parametrize("both_strands", [False, True])
def test_scores_are_differences_of_whole_windows(both_strands):
    model, bases = tiny(), GENOME["chr1"].decode()
    variants = [
        substitution("chr1", 150),
        substitution("chr1", 1),
        substitution("chr1", 300),
        Variant("chr1", 100, bases[99:102], bases[99]),  # a deletion
        Variant("chr1", 120, bases[119], bases[119] + "ACGT"),  # an insertion
        substitution("chr2", 7),
        Variant("chr1", 50, bases[49], bases[49]),  # nothing
    ]
    expected = []
    for variant in variants:
        pairs = [variant_windows(variant, GENOME, 48)]
        if both_strands:
            pairs.append(type(pairs[0])(*map(reverse_complement, pairs[0])))
        expected.append(np.mean([whole(model, pair.alt) - whole(model, pair.ref) for pair in pairs]))
    scores = score_variants(model, GENOME, variants, size=48, both_strands=both_strands, batch_size=3)
    assert np.allclose(scores, expected, atol=2e-4)
    assert scores[-1] == 0
    assert (np.abs(scores[:-1]) > 1e-2).sum() >= 4


@pytest.mark.parametrize(
    ("position", "size", "start", "stop"), [(150, 10, 145, 155), (1, 10, 0, 10), (300, 10, 290, 300), (20, 500, 0, 300)]
)
def test_windows_lie_around_the_variant(position, size, start, stop):
    variant = substitution("chr1", position)
    window = variant_windows(variant, GENOME, size)
    assert window.ref == GENOME["chr1"][start:stop]
    place = position - 1 - start
    assert window.alt == window.ref[:place] + variant.alt.encode() + window.ref[place + 1 :]


def test_windows_of_insertions_stay_within_the_size():
    variant = Variant("chr1", 150, chr(GENOME["chr1"][149]), "A" * 9)
    window = variant_windows(variant, GENOME, 20)
    assert len(window.alt) == 20
    assert len(window.ref) == 12


def test_embeddings_are_means_over_the_window():
    model = tiny()
    sequences = [GENOME["chr2"], GENOME["chr1"][:13]]
    rows = [model.model(torch.tensor([[{65: 7, 67: 8, 71: 9, 84: 10}[b] for b in s]])) for s in sequences]
    expected = torch.cat([row.last_hidden_state.mean(1) for row in rows]).detach().numpy()
    assert np.allclose(embed(model, sequences), expected, atol=1e-5)
    assert np.allclose(embed(model.model, sequences, batch_size=1), expected, atol=1e-5)
    assert embed(tiny(HyenaDNAForSequenceClassification), sequences).shape == (2, 16)
    assert embed(model, []).shape == (0, 16)


def test_reverse_complement():
    assert reverse_complement(b"AACGTN") == b"NACGTT"


def test_parses_vcf_and_csv():
    vcf = '##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tINFO\nchr1\t3\t.\ta\tG,ct\tX="y\n\nchr2\t7\t.\tAC\tA\t.\n'
    expected = [Variant("chr1", 3, "A", "G"), Variant("chr1", 3, "A", "CT"), Variant("chr2", 7, "AC", "A")]
    assert parse_variants(io.StringIO(vcf)) == expected
    assert parse_variants(["alt,chrom,pos,ref,note\n", '"G,ct",chr1,3,a,x\n', "A,chr2, 7 ,AC,\n"]) == expected
    assert str(expected[1]) == "chr1:3 A>CT"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"the first line must name columns chrom, pos, ref, alt"),
        (["chrom,pos,ref\n", "1,2,A\n"], r"got none for \['alt'\]"),
        (["chrom,pos,ref,alt\n"], r"expected variants, got none"),
        (["chrom,pos,ref,alt\n", "1,x,A,C\n"], r"line 2: pos must be a number from 1, got 'x'"),
        (["chrom,pos,ref,alt\n", "\n", "1,0,A,C\n"], r"line 3: pos must be a number from 1, got '0'"),
        (["chrom,pos,ref,alt\n", "1,2,A,<DEL>\n"], r"line 2: alleles must be of A, C, G, T and N, got '<DEL>'"),
        (["chrom,pos,ref,alt\n", "1,2,A\n"], r"line 2: expected 4 columns, got 3"),
    ],
)
def test_bad_lists(lines, message):
    with pytest.raises(ValueError, match=f"list.csv.*{message}"):
        parse_variants(lines, "list.csv")


def test_bad_variants():
    other = next(base for base in "ACGT" if base != chr(GENOME["chr1"][9]))
    for variant, message in (
        (Variant("chr3", 1, "A", "C"), "chromosome must be one of chr1, chr2, got chr3"),
        (Variant("chr1", 10, other, "N"), f"the genome must have {other} there, got {chr(GENOME['chr1'][9])}"),
        (Variant("chr1", 301, "A", "C"), "got an end after 300 bases"),
    ):
        with pytest.raises(ValueError, match=message):
            score_variants(tiny(), GENOME, [variant], size=32)
    good = substitution("chr1", 150)
    with pytest.raises(ValueError, match="must be longer than the alleles, got 1 bases"):
        score_variants(tiny(), GENOME, [good], size=1)
    with pytest.raises(ValueError, match="at most 66 bases, the model's longest text, got 67"):
        score_variants(tiny(), GENOME, [good], size=67)
    with pytest.raises(ValueError, match=r"HyenaDNA's 12 tokens, .* got 19"):
        score_variants(HyenaDNAForCausalLM(HyenaDNAConfig(**TINY, vocab_size=19)), GENOME, [good], size=32)
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        score_variants(tiny(), GENOME, [good], size=32, batch_size=0)
    with pytest.raises(ValueError, match="got an empty one"):
        embed(tiny(), [b"A", b""])


@pytest.fixture
def files(tmp_path):
    tiny().save_pretrained(tmp_path / "model")
    with gzip.open(tmp_path / "genome.fa.gz", "wt") as file:
        for name, bases in GENOME.items():
            file.write(f">{name} made up\n{bases.decode().lower()}\n")
    variants = [substitution("chr1", 150), substitution("chr2", 7)]
    lines = ["chrom,pos,ref,alt", *(",".join(map(str, variant)) for variant in variants)]
    (tmp_path / "variants.csv").write_text("\n".join(lines) + "\n")
    return tmp_path, variants


def run_example(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["dna_variants.py", *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / "dna_variants.py"), run_name="__main__")


def test_the_example(files, monkeypatch, capsys):
    folder, variants = files
    paths = (folder / "model", folder / "genome.fa.gz", folder / "variants.csv")
    run_example(monkeypatch, *paths, "--size", 48, "--both-strands", "--embeddings", folder / "windows.npz")
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    scores = score_variants(tiny(), GENOME, variants, size=48, both_strands=True)
    assert [(r["chrom"], int(r["pos"]), r["ref"], r["alt"]) for r in rows] == variants
    assert np.allclose([float(row["score"]) for row in rows], scores, atol=1e-3)
    with np.load(folder / "windows.npz", allow_pickle=False) as written:
        assert written["embeddings"].shape == (2, 16)
        assert written["names"].tolist() == [str(variant) for variant in variants]
    run_example(monkeypatch, *paths)  # in windows of the 66 bases that the model takes
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert np.allclose(
        [float(row["score"]) for row in rows], score_variants(tiny(), GENOME, variants, size=66), atol=1e-3
    )


@pytest.mark.parametrize(
    ("lines", "more", "message"),
    [
        ("chrom,pos,ref,alt\nchrZ,1,A,C\n", (), "chromosome must be one of chr1, chr2, got chrZ"),
        ("chrom,pos,ref,alt\n", (), "expected variants, got none"),
        (None, ("--embeddings", "windows"), "--embeddings must be a file ending in .npz, got windows"),
        (None, ("--embeddings", "none/windows.npz"), "no folder none to write windows.npz in"),
        (None, ("--size", 100), "windows must have at most 66 bases"),
        (None, ("--size", 0), "the window must be longer than the alleles, got 0 bases"),
    ],
)
def test_the_example_says_what_is_wrong_in_a_line(files, monkeypatch, capsys, lines, more, message):
    folder, _ = files
    if lines is not None:
        (folder / "variants.csv").write_text(lines)
    with pytest.raises(SystemExit) as ended:
        run_example(monkeypatch, folder / "model", folder / "genome.fa.gz", folder / "variants.csv", *more)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_example_overwrites_nothing(files, monkeypatch, capsys):
    folder, _ = files
    (folder / "windows.npz").write_text("mine")
    paths = (folder / "model", folder / "genome.fa.gz", folder / "variants.csv")
    with pytest.raises(SystemExit):
        run_example(monkeypatch, *paths, "--embeddings", folder / "windows.npz")
    assert "windows.npz exists already" in capsys.readouterr().err
    assert (folder / "windows.npz").read_text() == "mine"


def test_the_example_wants_a_folder_and_files(files, monkeypatch, capsys):
    folder, _ = files
    for model, genome, message in (
        ("no", "genome.fa.gz", "no folder"),
        ("model", "none.fa", "no file"),
        ("model", "variants.csv", "is no FASTA"),
    ):
        with pytest.raises(SystemExit):
            run_example(monkeypatch, folder / model, folder / genome, folder / "variants.csv")
        assert message in capsys.readouterr().err.splitlines()[-1]

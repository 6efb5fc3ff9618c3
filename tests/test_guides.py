"""Every page of docs/guides, and docs/streaming.md, runs from its first block to its last, reduced by the table below.

A block that no row touches runs as it stands. What a page downloads is put in place beforehand, by a stand-in of the
same format. The python blocks of a page are one program, the shell blocks one `bash -euo pipefail` each.
"""

import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.documents import ROOT, SHELLS, blocks

# (what a page says, what a test runs), as regular expressions; every row must be of use.
NOTHING = "true"
REDUCED: dict[str, list[tuple[str, str]]] = {
    "realtime.md": [
        (r"^(pip|python -m zipfile) .*$", NOTHING),
        (r"--steps 600 --eval-every 200", "--steps 4 --eval-every 2"),
        (r"--seq-len 720", "--seq-len 72"),
        (r"hidden_size=32, num_layers=2, horizon=36, steps=100", "hidden_size=8, num_layers=1, horizon=36, steps=3"),
        (r"examples/sensor.py scipy-\S+", f"{ROOT}/examples/sensor.py ecg.npz --minutes 0.01"),
        (r"^python examples/realtime_bot.py --seconds 60", NOTHING),  # tests/test_examples.py runs it
    ],
    "research.md": [
        (r"^pip .*$", NOTHING),
        (r"--data builtin", "--data text.txt"),
        (r"--params 1M", "--params 200k"),
        (r"--seq-len 512", "--seq-len 32"),
        (r"--(minutes|steps) \d+", "--steps 2 --seq-len 32 --batch-size 2 --sample-tokens 4"),
        (r"in 1 2;", "in 1;"),
        (r" runs/\w+-seed2\b", ""),
        (r"--expand-ratio 1 ", "--expand-ratio 16 "),  # at a state of one the smallest models are larger
    ],
    "published_weights.md": [
        (r"LongSafari/hyenadna-tiny-1k-seqlen-hf", "downloaded"),
        (r"^(apt-get|dpkg-deb|cp) .*$", NOTHING),
        (r"--hidden-size 128 --num-hidden-layers 3", "--hidden-size 32 --num-hidden-layers 1"),
        (r"--intermediate-size 256", "--intermediate-size 32"),
        (r"--seq-len 1024", "--seq-len 64"),
        (r"--minutes 30", "--steps 3"),
        (r"--max-new-tokens 200", "--max-new-tokens 10"),
        (r"X,30000001,A,G", "X,1000,A,G"),
        (r"examples/dna_variants.py", str(ROOT / "examples" / "dna_variants.py")),
    ],
    "../streaming.md": [],
}


def _heart(folder: Path) -> None:
    """26,000 samples of a beat, in the units and under the name of SciPy's file."""
    time = np.arange(26_000)
    file = folder / "scipy-wheel" / "scipy" / "misc" / "ecg.dat"
    file.parent.mkdir(parents=True)
    beat = 1024 + 200 * np.exp(-(((time % 216) - 100) ** 2) / 30)
    with file.open("wb") as stream:
        np.savez(stream, ecg=beat.astype(np.uint16))


def _text(folder: Path) -> None:
    from tests.train.runs import write_text

    write_text(folder / "text.txt", size=4_000)


def _genome(folder: Path) -> None:
    """A chromosome of 4,000 bases, and a checkpoint in the layout of those on the hub."""
    from longstream.hf import HyenaDNAConfig, HyenaDNAForCausalLM

    bases = np.random.default_rng(0).choice(list("ACGT"), 4_000)
    bases[999] = "A"
    with gzip.open(folder / "chrX.fa.gz", "wt") as file:
        file.write(">X\n" + "\n".join("".join(line) for line in bases.reshape(-1, 80)) + "\n")
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=16, d_inner=32, n_layer=2, max_seq_len=64)
    HyenaDNAForCausalLM(config).save_pretrained(folder / "downloaded")


STAND_INS: dict[str, Callable[[Path], None]] = {
    "realtime.md": _heart,
    "research.md": _text,
    "published_weights.md": _genome,
    "../streaming.md": lambda folder: None,
}


def test_every_page_is_tested():
    pages = {path.name for path in (ROOT / "docs" / "guides").glob("*.md")} - {"README.md"}
    assert pages | {"../streaming.md"} == set(REDUCED) == set(STAND_INS)


@pytest.mark.slow
@pytest.mark.parametrize("page", REDUCED)
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    STAND_INS[page](tmp_path)
    monkeypatch.chdir(tmp_path)
    longstream = f'longstream() {{ "{sys.executable}" -m longstream "$@"; }}\npython() {{ "{sys.executable}" "$@"; }}\n'
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    unused = {pattern for pattern, _ in REDUCED[page]}
    names: dict[str, object] = {"__name__": "__main__"}
    for line, language, code in blocks(f"docs/guides/{page}"):
        for pattern, replacement in REDUCED[page]:
            code, count = re.subn(pattern, replacement.replace("\\", r"\\"), code, flags=re.MULTILINE)
            unused -= {pattern} if count else set()
        if language in SHELLS:
            script = ["bash", "-euo", "pipefail", "-c", longstream + code]
            done = subprocess.run(script, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{page}:{line}\n{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        elif language == "python":
            exec(compile(code, f"{page}:{line}", "exec"), names)
    assert not unused, f"rows of no use: {sorted(unused)}"

"""States of prefixes: found again, in order and within bounds, in memory, in files, and by several processes."""

import os
import subprocess
import sys

import pytest
import torch

from longstream.models import HyenaConfig, State
from longstream.models import generate as eager_generate
from longstream.stream import PrefixCache, generate
from tests.conftest import ROOT
from tests.stream.test_text import MIXERS, make

SYSTEM = [3, 1, 4, 1, 5, 9, 2, 6]
PROMPTS = [[*SYSTEM, 5], [*SYSTEM, 3, 5, 8], [*SYSTEM, 3, 5, 8, 9, 7], [1], [2, 7]]


@pytest.fixture(params=MIXERS)
def model(request):
    return make(request.param)


def same(a: State, b: State) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def close(a: State, b: State) -> bool:
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_it_is_the_models_state(model):
    cache = PrefixCache(model)
    _, expected = model(torch.tensor([SYSTEM]))
    first = cache.state_of(SYSTEM)
    assert close(first, expected)
    assert cache.state_of(torch.tensor(SYSTEM)) is first
    longer = cache.state_of([*SYSTEM, 5, 3])
    assert close(longer, model(torch.tensor([[*SYSTEM, 5, 3]]))[1])
    assert (cache.hits, cache.misses, len(cache)) == (1, 2, 2)
    assert cache.nbytes == first.nbytes + longer.nbytes
    assert cache.fork(SYSTEM, 3).position.tolist() == [8, 8, 8]
    assert first.position.tolist() == [8]


def test_only_the_rest_is_read(monkeypatch):
    model, lengths = make(), []
    cache = PrefixCache(model)
    prefill = cache._steps.prefill
    monkeypatch.setattr(
        cache._steps, "prefill", lambda ids, *rest: (lengths.append(ids.shape[1]), prefill(ids, *rest))[1]
    )
    for ids in (SYSTEM, [*SYSTEM, 5], [*SYSTEM, 5, 7, 8], SYSTEM[:3], [*SYSTEM, 6], [9, *SYSTEM]):
        cache.state_of(ids)
    assert lengths == [8, 1, 2, 3, 1, 9]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 4, "top_k": 5}])
def test_the_same_tokens_as_without(model, options):
    expected = eager_generate(model, PROMPTS, 12, **options)
    cache = PrefixCache(model)
    for _ in range(2):
        assert generate(model, PROMPTS, 12, prefix=cache, batch_size=2, **options) == expected
    assert cache.hits >= 4
    state = PrefixCache(model).state_of(SYSTEM)
    new = [prompt[8:] for prompt in PROMPTS[:3]]
    assert generate(model, new, 12, prefix=state, **options) == expected[:3]
    with pytest.raises(ValueError, match="prefix must be a state of one row, got 2"):
        generate(model, new, 12, prefix=state.fork(2))


def test_what_was_not_used_for_longest_leaves_first():
    model = make()
    size = PrefixCache(model).state_of([1]).nbytes
    cache = PrefixCache(model, memory_bytes=2 * size)
    for ids in ([1], [2], [1], [3]):
        cache.state_of(ids)
    assert (len(cache), cache.nbytes, cache.hits) == (2, 2 * size, 1)
    cache.state_of([1])
    assert cache.hits == 2
    cache.state_of([2])
    assert cache.hits == 2
    assert len(PrefixCache(model, memory_bytes=0)._states) == 0
    nothing = PrefixCache(model, memory_bytes=size - 1)
    nothing.state_of([1])
    assert len(nothing) == 0


def test_files(model, tmp_path):
    first = PrefixCache(model, directory=tmp_path / "states")
    state = first.state_of(SYSTEM)
    again = PrefixCache(model, directory=tmp_path / "states")
    assert same(again.state_of(SYSTEM), state)
    assert (again.hits, again.misses) == (1, 0)
    assert close(again.state_of([*SYSTEM, 5]), model(torch.tensor([[*SYSTEM, 5]]))[1])
    assert same(first.state_of([*SYSTEM, 5]), again.state_of([*SYSTEM, 5]))
    assert first.hits == 1
    again.clear()
    assert (len(again), again.disk_nbytes) == (0, 0)


def test_bytes_of_files(tmp_path):
    model = make()
    cache = PrefixCache(model, memory_bytes=0, directory=tmp_path)
    cache.state_of([1])
    one = cache.disk_nbytes
    cache = PrefixCache(model, memory_bytes=0, directory=tmp_path, disk_bytes=3 * one + 100)
    for number, ids in enumerate(([2], [3], [1], [4])):
        cache.state_of(ids)
        for path in cache._files().values():  # coarse clocks
            about = path.stat()
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns - 10**9 * (4 - number)))
    assert cache.disk_nbytes <= 3 * one + 100
    assert cache.hits == 1
    cache.state_of([1])
    assert cache.hits == 2
    small = PrefixCache(model, directory=tmp_path, disk_bytes=10)
    small.state_of([7])
    assert len(small) == 1
    assert small.disk_nbytes > 10  # what is too large is not written, and nothing is removed for it


def test_a_folder_that_cannot_be_written_costs_no_answer(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    model = make()
    cache = PrefixCache(model, directory=tmp_path / "file")
    assert same(cache.state_of([1, 2]), PrefixCache(model).state_of([1, 2]))
    assert any("cannot be written" in r.getMessage() for r in caplog.records)
    assert (cache.misses, len(cache)) == (1, 1)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_files_are_dropped_and_told(damage, tmp_path, caplog):
    model = make()
    cache = PrefixCache(model, memory_bytes=0, directory=tmp_path)
    state = cache.state_of(SYSTEM)
    (path,) = cache._files().values()
    whole = path.read_bytes()
    bad = {"cut": whole[:-9], "flip": whole[:-5] + b"\xff" + whole[-4:], "empty": b""}
    if damage == "other":
        cache.state_of([1]).save(path, overwrite=True)
    else:
        path.write_bytes(bad[damage])
    assert same(cache.state_of(SYSTEM), state)
    assert len([r for r in caplog.records if "was damaged and is removed" in r.getMessage()]) == 1
    assert same(PrefixCache(model, directory=tmp_path).state_of(SYSTEM), state)


def test_states_of_other_weights_are_not_taken(tmp_path):
    model = make()
    cache = PrefixCache(model, directory=tmp_path)
    before, name = cache.state_of(SYSTEM), cache.fingerprint
    with torch.no_grad():
        model.backbone.layers[0].mixer.out_proj.weight.add_(0.5)  # type: ignore[union-attr]
    after = cache.state_of(SYSTEM)
    assert cache.fingerprint != name
    assert not close(before, after)
    assert close(after, model(torch.tensor([SYSTEM]))[1])
    assert len([*tmp_path.iterdir()]) == 2
    other = make("hyena", mixer=HyenaConfig(max_seq_len=64, filter_width=8, positional_width=5, window=False))
    assert PrefixCache(other, directory=tmp_path).state_of(SYSTEM).fingerprint != after.fingerprint


def test_files_of_strangers_are_left_alone(tmp_path):
    cache = PrefixCache(make(), directory=tmp_path, memory_bytes=0)
    cache.state_of([1])
    folder = tmp_path / cache.fingerprint
    for name in ("x.state", "12-zz.state", "notes.txt"):
        (folder / name).write_text("mine")
    cache.state_of([1])
    cache.state_of([1, 2])
    assert {(folder / name).read_text() for name in ("x.state", "12-zz.state", "notes.txt")} == {"mine"}


def test_refusals():
    model = make()
    wrongs: list[dict] = [{"memory_bytes": -1}, {"disk_bytes": 1.5}]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"PrefixCache: \w+_bytes must be an integer >= 0"):
            PrefixCache(model, **wrong)
    cache = PrefixCache(model)
    with pytest.raises(ValueError, match="must have at least one token"):
        cache.state_of([])
    with pytest.raises(ValueError, match=r"must lie in \[0, 13\)"):
        cache.state_of([99])


@pytest.mark.slow
def test_processes_share_a_directory(tmp_path):
    """Three at once, on the same and on other prefixes, within a few files' bytes; none fails, all write the same."""
    code = (
        "import random, sys, torch\n"
        "from tests.stream.test_text import make\n"
        "from longstream.stream import PrefixCache\n"
        "model, rng = make(), random.Random(int(sys.argv[1]))\n"
        "cache = PrefixCache(model, memory_bytes=0, directory='states', disk_bytes=20_000)\n"
        "for _ in range(60):\n"
        "    ids = [rng.randrange(3) for _ in range(rng.randint(1, 4))]\n"
        "    state, expected = cache.state_of(ids), model(torch.tensor([ids]))[1]\n"
        "    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(state.tensors(), expected.tensors()))\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(n)], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        for n in range(3)
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "damaged" not in errors

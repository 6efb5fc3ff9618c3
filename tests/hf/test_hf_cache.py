"""RecurrentCache: rows move, copies are apart, and what a state cannot do is refused in words."""

import copy
import io
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from transformers import Cache

from longstream.hf import RecurrentCache
from longstream.models import HyenaConfig, State
from tests.conftest import ROOT
from tests.hf.conftest import ATTENTION, KINDS, has_hyena, left_padded, random_ids, tiny_model
from tests.numerics import assert_same

HYENA_LONG = HyenaConfig(max_seq_len=200, filter_width=8, positional_width=5)
IDS, NEXT = random_ids(3, 6), random_ids(3, 1, seed=4)


@pytest.fixture
def cache(model):
    return model(IDS).past_key_values


def logits(model, cache, ids):
    return model(ids, past_key_values=copy.deepcopy(cache)).logits


def test_is_a_cache_of_transformers(model, cache):
    assert isinstance(cache, Cache)
    assert len(cache) == len(model.model.backbone.layers)
    assert (cache.batch_size, cache.get_seq_length(), cache.get_max_length()) == (3, 6, -1)
    assert not cache.is_compileable
    assert cache.is_croppable
    assert not cache.is_recording_past(0)
    assert cache.is_initialized
    assert cache.has_previous_state()
    assert cache.get_mask_sizes(2, 0) == (8, 0)


def test_before_the_first_token(model):
    empty = RecurrentCache()
    assert (len(empty), empty.batch_size, empty.get_seq_length()) == (0, -1, 0)
    assert not empty.has_previous_state()
    empty.reorder_cache(torch.tensor([0, 0]))
    empty.batch_repeat_interleave(2)
    empty.reset()
    assert_same("logits", model(IDS, past_key_values=empty).logits, model(IDS).logits)
    assert empty.get_seq_length() == 6


@pytest.mark.parametrize("rows", [[2, 0, 1], [1, 1, 1], [2]])
@pytest.mark.parametrize("method", ["reorder_cache", "batch_select_indices"])
def test_rows_are_chosen(model, cache, rows, method):
    expected = model(torch.cat([IDS[rows], NEXT[rows]], 1)).logits[:, -1:]
    getattr(cache, method)(torch.tensor(rows))
    assert cache.get_seq_length() == 6
    assert_same("logits", logits(model, cache, NEXT[rows]), expected)


def test_rows_are_repeated(model, cache):
    cache.batch_repeat_interleave(2)
    ids = random_ids(6, 1, seed=8)
    expected = model(torch.cat([IDS.repeat_interleave(2, 0), ids], 1)).logits[:, -1:]
    assert_same("logits", logits(model, cache, ids), expected)


def test_reset(model, cache):
    cache.reset()
    assert_same("logits", model(IDS, past_key_values=cache).logits, model(IDS).logits)
    assert cache.get_seq_length() == 6


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copies_are_apart(model, duplicate):
    with torch.no_grad():
        cache = model(IDS).past_key_values
    twin = duplicate(cache)
    first = model(NEXT, past_key_values=cache).logits
    assert (twin.get_seq_length(), cache.get_seq_length()) == (6, 7)
    assert_same("logits", model(NEXT, past_key_values=twin).logits, first)


def through_torch(value) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("duplicate", [through_torch, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_what_is_written_down_has_no_graph(model, duplicate):
    """torch.load with weights_only makes the cache, its state and every mixer's; or none before the first token."""
    assert len(duplicate(RecurrentCache())) == 0
    cache = model(IDS).past_key_values
    twin: Any = duplicate(cache)
    assert type(twin) is RecurrentCache
    assert cache.state is not None
    assert twin.state is not None
    assert twin.state.fingerprint == cache.state.fingerprint
    assert [type(layer) for layer in twin.state.layers] == [type(layer) for layer in cache.state.layers]
    for got, expected in zip(twin.state.tensors(), cache.state.tensors(), strict=True):
        assert not got.requires_grad
        assert got.dtype == expected.dtype
        assert got.equal(expected)
    twin.batch_repeat_interleave(2)
    twin.batch_select_indices(torch.tensor([5, 0, 2]))
    expected = logits(model, cache, NEXT)[[2, 0, 1]]
    assert_same("logits", model(NEXT[[2, 0, 1]], past_key_values=duplicate(twin)).logits, expected)


def test_generate_goes_on_from_a_file(model):
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(IDS)}
    whole = model.generate(IDS, **options)
    cache = through_torch(model(IDS[:, :4]).past_key_values)
    assert model.generate(IDS, past_key_values=cache, **options).equal(whole)
    state = through_torch(model(IDS[:, :4]).past_key_values.state.detach())
    assert isinstance(state, State)
    assert model.generate(IDS, past_key_values=state, **options).equal(whole)


@pytest.mark.slow
def test_another_process(tmp_path):
    """It repeats the rows of every model's cache, once read by pickle and once by torch.load."""
    models = {kind: tiny_model(kind) for kind in KINDS}
    caches = {kind: model(IDS).past_key_values for kind, model in models.items()}
    (tmp_path / "pickle").write_bytes(pickle.dumps(caches))
    torch.save(caches, tmp_path / "torch")
    code = (
        "import pickle, sys, torch, longstream.hf\n"
        "for caches in (pickle.load(open('pickle', 'rb')), torch.load('torch', weights_only=True)):\n"
        "    for cache in caches.values(): cache.batch_repeat_interleave(2)\n"
        "    torch.save(caches, sys.argv.pop())\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, "one", "two"], cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    for name in ("one", "two"):
        for kind, cache in torch.load(tmp_path / name, weights_only=True).items():
            ids = random_ids(6, 1, seed=8)
            expected = models[kind](torch.cat([IDS.repeat_interleave(2, 0), ids], 1)).logits[:, -1:]
            assert_same(kind, models[kind](ids, past_key_values=cache).logits, expected)


def test_size_does_not_grow_but_hyenas(model):
    sizes = [model(random_ids(3, T)).past_key_values.state.nbytes for T in (1, 2, 64)]
    assert sizes[0] == sizes[1]
    assert (sizes[1] < sizes[2]) == has_hyena(model)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda cache: cache.crop(-1), RuntimeError, "crop: .* call activate_past_recording before"),
        (lambda cache: cache.crop(1), ValueError, "crop: tokens_to_remove must be <= 0, got 1"),
        (lambda cache: cache.update(torch.ones(1), torch.ones(1), 0), NotImplementedError, "no keys and values"),
    ],
)
def test_refusals(call, error, words):
    cache = RecurrentCache(tiny_model()(IDS).past_key_values.state)
    cache.crop(0)
    with pytest.raises(error, match="RecurrentCache.*" + words):
        call(cache)


def test_rows_of_different_lengths_past_a_block_of_hyena():
    """States of a row that Hyena has made long and of one that it has not, in one cache: chosen, repeated, copied."""
    model = tiny_model("mixture", layers=(HYENA_LONG, ATTENTION))
    texts = [random_ids(length, seed=length).tolist() for length in (150, 70, 3)]
    ids, mask = left_padded(texts)
    cache = model(ids, attention_mask=mask).past_key_values
    assert len({len(layer) for layer in cache.state.layers}) > 1
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([5, 1, 2]))
    for twin in (copy.deepcopy(cache), pickle.loads(pickle.dumps(RecurrentCache(cache.state.detach())))):
        for row, text in enumerate((texts[2], texts[0], texts[1])):
            expected = model(torch.cat([torch.tensor([text]), NEXT[row][None]], 1)).logits[0, -1]
            assert_same("logits", logits(model, twin, NEXT)[row, 0], expected)


def test_wrong_state():
    with pytest.raises(TypeError, match=r"RecurrentCache: state must be .*State or None, got dict"):
        RecurrentCache({})  # type: ignore[arg-type]

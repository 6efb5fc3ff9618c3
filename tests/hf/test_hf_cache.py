"""RecurrentCache: rows move, copies are apart, and what a state cannot do is refused in words."""

import copy
import pickle

import pytest
import torch
from transformers import Cache

from longstream.hf import RecurrentCache
from tests.hf.conftest import random_ids
from tests.numerics import assert_same

IDS, NEXT = random_ids(3, 6), random_ids(3, 1, seed=4)


@pytest.fixture
def cache(model):
    return model(IDS).past_key_values


def logits(model, cache, ids):
    return model(ids, past_key_values=copy.deepcopy(cache)).logits


def test_is_a_cache_of_transformers(cache):
    assert isinstance(cache, Cache)
    assert (len(cache), cache.batch_size, cache.get_seq_length(), cache.get_max_length()) == (2, 3, 6, -1)
    assert not cache.is_compileable
    assert not cache.is_croppable
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


def test_size_does_not_grow(model):
    sizes = {model(random_ids(3, T)).past_key_values.state.nbytes for T in (1, 2, 50)}
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda cache: cache.crop(-1), "crop: a recurrent state cannot be taken back"),
        (lambda cache: cache.activate_past_recording(), "past states are not recorded"),
        (lambda cache: cache.update(torch.ones(1), torch.ones(1), 0), "no keys and values"),
    ],
)
def test_refusals(cache, call, words):
    with pytest.raises(NotImplementedError, match="RecurrentCache.*" + words):
        call(cache)


def test_wrong_state():
    with pytest.raises(TypeError, match=r"RecurrentCache: state must be .*State or None, got dict"):
        RecurrentCache({})  # type: ignore[arg-type]

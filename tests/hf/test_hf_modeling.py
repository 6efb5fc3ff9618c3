"""forward: pads, packing, states, losses, checkpointing, and errors that name what was wrong."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.loss.loss_utils import ForCausalLMLoss

from longstream.hf import RecurrentCache
from longstream.models import HyenaConfig, State
from tests.hf.conftest import VOCAB, left_padded, random_ids, tiny_model
from tests.numerics import assert_same


def assert_same_state(got, expected):
    assert got.fingerprint == expected.fingerprint
    assert got.position.tolist() == expected.position.tolist()
    for n, (a, b) in enumerate(zip(got.tensors(), expected.tensors(), strict=True)):
        assert_same(f"state tensor {n}", a, b)


def test_pads_are_as_if_not_there(model):
    prompts = [random_ids(length, seed=length).tolist() for length in (1, 9, 4)]
    ids, left = left_padded(prompts)
    wide = torch.cat([ids.flip(1), ids.new_full((3, 2), 5)], dim=1)  # pads on the right too, of another token
    right = F.pad(left.flip(1), (0, 2))
    both = F.pad(left, (1, 2))
    for given, mask in ((ids, left), (wide, right), (F.pad(ids, (1, 2)), both), (F.pad(ids, (1, 2)), both.bool())):
        out = model(given, attention_mask=mask)
        for row in range(3):
            real = mask[row] != 0
            alone = model(given[row, real][None])
            assert_same("logits", out.logits[row, real], alone.logits[0])
            assert (out.logits[row, ~real] == 0).all()
            assert_same_state(out.past_key_values.state.select([row]), alone.past_key_values.state)
    assert out.past_key_values.get_seq_length() == 12


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 8, 9])
def test_two_calls_equal_one(model, cut):
    ids = random_ids(2, 9)
    whole = model(ids)
    first = model(ids[:, :cut])
    second = model(ids[:, cut:], past_key_values=first.past_key_values)
    assert second.past_key_values is first.past_key_values
    assert_same("logits", torch.cat([first.logits, second.logits], 1), whole.logits)
    assert_same_state(second.past_key_values.state, whole.past_key_values.state)


def test_two_calls_with_pads_and_either_width_of_mask(model):
    ids, mask = left_padded([random_ids(9, seed=1).tolist(), random_ids(4, seed=2).tolist()])
    whole = model(ids, attention_mask=mask)
    for whole_mask in (True, False):
        first = model(ids[:, :6], attention_mask=mask[:, :6])
        rest = mask if whole_mask else mask[:, 6:]
        second = model(ids[:, 6:], attention_mask=rest, past_key_values=first.past_key_values)
        assert_same("logits", second.logits, whole.logits[:, 6:])


def test_token_by_token_equals_one_call(model):
    ids = random_ids(2, 7)
    cache = RecurrentCache()
    logits = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(7)]
    assert_same("logits", torch.cat(logits, 1), model(ids).logits)


def test_packed_sequences_equal_each_alone(model):
    sequences = [random_ids(1, length, seed=length) for length in (3, 1, 6)]
    packed, bounds = torch.cat(sequences, 1), torch.tensor([0, 3, 4, 10], dtype=torch.int32)
    model.train()
    losses = [model(ids, labels=ids).loss for ids in sequences if ids.shape[1] > 1]
    expected = (2 * losses[0] + 5 * losses[1]) / 7  # a sequence of T tokens has T - 1 targets
    flattening = {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": 6, "max_length_k": 6}
    flattening["position_ids"] = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3, 4, 5]])
    for given in ({"cu_seqlens": bounds}, {"cu_seqlens": bounds.tolist()}, flattening):
        out = model(packed, labels=packed, use_cache=True, **given)
        assert_same("loss", out.loss, expected)
        assert_same("logits", out.logits, torch.cat([model(ids).logits for ids in sequences], 1))
        assert out.past_key_values.state.position.tolist() == [3, 1, 6]
    following = random_ids(3, 2)
    y = model(following, past_key_values=out.past_key_values).logits
    for row, ids in enumerate(sequences):
        alone = model(torch.cat([ids, following[row][None]], 1)).logits[:, -2:]
        assert_same("logits after the packed row", y[row], alone[0])


def test_loss_is_transformers_loss(model):
    model.train().float()
    ids = random_ids(2, 7)
    labels = ids.masked_fill(torch.rand(2, 7) < 0.4, -100)
    out = model(ids, labels=labels)
    assert out.past_key_values is None
    extras: list[dict[str, Any]] = [{}, {"num_items_in_batch": 5}, {"ignore_index": 3}]
    for extra in [*extras, {"num_items_in_batch": torch.tensor(5)}]:
        got = model(ids, labels=labels.masked_fill(labels == -100, extra.get("ignore_index", -100)), **extra).loss
        full = labels.masked_fill(labels == -100, extra.get("ignore_index", -100))
        assert_same("loss", got, ForCausalLMLoss(out.logits, full, out.logits.shape[-1], **extra), 0)
    kept = labels[:, 1:] != -100
    mean = F.cross_entropy(out.logits[:, :-1][kept], ids[:, 1:][kept])
    assert_same("loss", out.loss, mean, 1e-6)  # float32, a mean in another order
    shifted = F.pad(labels[:, 1:], (0, 1), value=-100)
    assert_same("loss", model(ids, labels=labels, shift_labels=shifted).loss, out.loss, 0)


def test_loss_trains_every_parameter(model):
    model.train()
    ids = random_ids(2, 7)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("reentrant", "every", "pads"), [(False, 1, False), (True, 1, True), (False, 2, True), (True, 2, False)]
)
def test_gradient_checkpointing_changes_nothing(model, reentrant, every, pads):
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7]) if pads else None
    past = model(random_ids(2, 3, seed=9)).past_key_values.state
    check_checkpointing(model, past, random_ids(2, 7), mask, reentrant, every)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_with_a_state_that_grows(reentrant):
    model = tiny_model("hyena", mixer=HyenaConfig(max_seq_len=100, filter_width=8, positional_width=5))
    past = model(random_ids(2, 60, seed=9)).past_key_values.state
    after = check_checkpointing(model, past, random_ids(2, 7), None, reentrant, 1)
    assert len(after.tensors()) > len(past.tensors())


def check_checkpointing(model, past, ids, mask, reentrant, every):
    grads, calls = [], []
    for checkpointed in (False, True):
        run = copy.deepcopy(model).train()
        if checkpointed:
            run.activation_checkpointing_enable({"use_reentrant": reentrant}, every_n_layers=every)
            calls = count_calls(run.model.backbone.layers)
        state = past.with_tensors([x.detach().requires_grad_(x.is_floating_point()) for x in past.tensors()])
        out = run(ids, attention_mask=mask, labels=ids, past_key_values=state)
        after = out.past_key_values.state
        loss = out.loss + sum(x.square().sum() for x in after.tensors() if x.is_floating_point())
        loss.backward()
        grads.append([p.grad for p in run.parameters()] + [x.grad for x in state.tensors() if x.requires_grad])
    # A checkpointed block runs again going backward.
    assert calls == [2 if n % every == 0 else 1 for n in range(len(calls))]
    for n, (plain, again) in enumerate(zip(*grads, strict=True)):
        assert_same(f"gradient {n}", again, plain)
    return after


def count_calls(blocks):
    calls = [0] * len(blocks)
    for n, block in enumerate(blocks):

        def count(*_, n=n):
            calls[n] += 1

        block.register_forward_pre_hook(count)
    return calls


def test_hidden_states(model):
    ids, mask = left_padded([random_ids(5, seed=1).tolist(), random_ids(3, seed=2).tolist()])
    out = model(ids, attention_mask=mask, output_hidden_states=True)
    assert len(out.hidden_states) == len(model.model.backbone.layers) + 1
    alone = model(ids[1:, 2:], output_hidden_states=True)
    for padded, bare in zip(out.hidden_states, alone.hidden_states, strict=True):
        assert_same("hidden states", padded[1, 2:], bare[0])
    assert_same("last", out.hidden_states[-1], model.model(ids, attention_mask=mask).last_hidden_state)
    assert model(ids).hidden_states is None


def test_logits_to_keep(model):
    ids = random_ids(2, 6)
    whole = model(ids).logits
    assert_same("last two", model(ids, logits_to_keep=2).logits, whole[:, -2:])
    assert_same("some", model(ids, logits_to_keep=torch.tensor([1, 4])).logits, whole[:, [1, 4]])


def test_embeddings_in_place_of_ids(model):
    ids = random_ids(2, 6)
    embeds = model.get_input_embeddings()(ids)
    assert_same("logits", model(inputs_embeds=embeds).logits, model(ids).logits)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_every_integer_dtype(model, dtype):
    ids = random_ids(2, 6)
    expected, got = model(ids, labels=ids), model(ids.to(dtype), labels=ids.to(dtype))
    assert_same("logits", got.logits, expected.logits)
    assert_same("loss", got.loss, expected.loss)
    row, cuts = ids.reshape(1, -1), [0, 5, 12]
    packed = model(row.to(dtype), labels=row.to(dtype), cu_seqlens=cuts)
    assert_same("packed loss", packed.loss, model(row, labels=row, cu_seqlens=cuts).loss)


def test_tuples(model):
    ids = random_ids(2, 6)
    logits, cache = model(ids, return_dict=False)
    assert_same("logits", logits, model(ids).logits)
    assert isinstance(cache, RecurrentCache)
    assert len(model(ids, labels=ids, use_cache=False, return_dict=False)) == 2


def test_use_cache(model):
    ids, more = random_ids(2, 6), random_ids(2, 1, seed=3)
    assert model(ids, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(ids).past_key_values is None
    cache = model(ids, use_cache=True).past_key_values
    kept = cache.state
    model(more, past_key_values=cache, use_cache=False)
    assert cache.state is kept
    assert cache.get_seq_length() == 6
    model.train()
    assert model(more, past_key_values=cache).past_key_values is cache
    assert cache.state is not kept


def test_start_from_a_state(model, tmp_path):
    ids = random_ids(2, 6)
    state = model(ids[:, :4]).past_key_values.state
    state.save(tmp_path / "state")
    for start in (state, State.load(tmp_path / "state")):
        assert_same("logits", model(ids[:, 4:], past_key_values=start).logits, model(ids).logits[:, 4:])


def test_model_is_copied_and_pickled(model):
    ids = random_ids(2, 6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same("logits", other(ids).logits, model(ids).logits)


IDS = random_ids(2, 6)


@pytest.mark.parametrize(
    ("error", "words", "given"),
    [
        (ValueError, r"input_ids must lie in \[0, 19\), got 19", {"input_ids": IDS.clone().fill_(VOCAB)}),
        (ValueError, r"input_ids must lie in \[0, 19\), got -1", {"input_ids": IDS.clone().fill_(-1)}),
        (ValueError, "input_ids must be an integer tensor", {"input_ids": IDS.double()}),
        (ValueError, "input_ids must be an integer tensor of shape", {"input_ids": IDS[0]}),
        (ValueError, "one of input_ids and inputs_embeds, got neither", {}),
        (
            ValueError,
            "one of input_ids and inputs_embeds, got both",
            {"input_ids": IDS, "inputs_embeds": torch.ones(2, 6, 24).double()},
        ),
        (ValueError, r"x must have shape .*D=24.*got \(2, 6, 5\)", {"inputs_embeds": torch.ones(2, 6, 5).double()}),
        (ValueError, r"attention_mask must have shape \(2, 6\), got \(2, 5\)", {"attention_mask": torch.ones(2, 5)}),
        (
            ValueError,
            r"attention_mask must have shape \(2, 6\), got \(2, 1, 6, 6\)",
            {"attention_mask": torch.ones(2, 1, 6, 6)},
        ),
        (ValueError, "mask must hold only 0", {"attention_mask": torch.full((2, 6), 2)}),
        (ValueError, r"labels must have shape \(2, 6\)", {"labels": IDS[:, :5]}),
        (ValueError, "logits_to_keep", {"labels": IDS, "logits_to_keep": 1}),
        (ValueError, "output_attentions must be False", {"output_attentions": True}),
        (TypeError, r"unknown arguments \['token_type_ids'\]", {"token_type_ids": IDS}),
        (TypeError, "position_ids means nothing here", {"position_ids": IDS}),
        (TypeError, "past_key_values must be .* got DynamicCache", {"past_key_values": DynamicCache()}),
        (ValueError, "cu_seqlens needs one packed row", {"cu_seqlens": [0, 6]}),
        (ValueError, "cu_seqlens must rise from 0 to T=6", {"input_ids": IDS[:1], "cu_seqlens": [0, 4, 3, 6]}),
        (
            ValueError,
            "mask and cu_seqlens exclude each other",
            {"input_ids": IDS[:1], "attention_mask": torch.ones(1, 6), "cu_seqlens": [0, 6]},
        ),
    ],
)
def test_refusals(error, words, given):
    model = tiny_model()
    given = given if {"input_ids", "inputs_embeds"} & given.keys() or not given else {"input_ids": IDS} | given
    with pytest.raises(error, match=words):
        model(**given)


def test_states_of_another_model_or_batch_are_refused(model):
    other = tiny_model(num_hidden_layers=3)
    foreign = other(IDS).past_key_values
    with pytest.raises(ValueError, match=r"another model: expected fingerprint \w+, got \w+"):
        model(IDS, past_key_values=foreign)
    assert foreign.get_seq_length() == 6
    cache = model(IDS).past_key_values
    with pytest.raises(ValueError, match=r"past_key_values must have 3 rows.* got 2; .*batch_repeat_interleave"):
        model(random_ids(3, 1), past_key_values=cache)
    with pytest.raises(ValueError, match=r"attention_mask must have shape \(2, 6\) or \(2, 12\), got \(2, 9\)"):
        model(IDS, past_key_values=cache, attention_mask=torch.ones(2, 9))


def test_a_call_that_fails_leaves_the_cache_alone(model):
    cache = model(IDS).past_key_values
    before = cache.state
    with pytest.raises(ValueError, match="mask must hold only 0"):
        model(IDS, past_key_values=cache, attention_mask=torch.full((2, 6), 3))
    assert cache.state is before
    assert cache.get_seq_length() == 6

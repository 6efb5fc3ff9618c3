"""bfloat16: outputs near those of float32, states and losses in float32, finite training, generation."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.hf.conftest import VOCAB, left_padded, random_ids
from tests.numerics import assert_same

IDS = random_ids(2, 30)
# bfloat16 has 8 bits: 0.4 % a rounding, of which a path through a tiny model has about ten.
NEAR = 0.03


def apart(got, expected):
    return float((got.float() - expected).norm() / expected.norm())


@pytest.fixture
def pair(model):
    """The model in float32, and in bfloat16."""
    single = model.float()
    return single, copy.deepcopy(single).to(torch.bfloat16)


@torch.no_grad()
def test_forward_is_near_float32(pair):
    single, half = pair
    expected, out = single(IDS), half(IDS, labels=IDS)
    assert out.logits.dtype == torch.bfloat16
    assert out.loss.dtype == torch.float32
    assert apart(out.logits, expected.logits) < NEAR
    for got, wanted in zip(out.past_key_values.state.tensors(), expected.past_key_values.state.tensors(), strict=True):
        assert got.dtype == wanted.dtype != torch.bfloat16
        if got.dtype == torch.float32 and wanted.numel() and wanted.norm():
            assert apart(got, wanted) < NEAR
    with torch.autocast("cpu", torch.bfloat16):
        assert apart(single(IDS).logits, expected.logits) < NEAR


@torch.no_grad()
def test_the_state_goes_on_as_the_whole(pair):
    """Each token's rounding differs between one call and many, but the state is not narrowed in between."""
    single, half = pair
    expected = single(IDS).logits
    cache, logits = None, []
    for t in range(IDS.shape[1]):
        out = half(IDS[:, t : t + 1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits)
    assert apart(torch.cat(logits, 1), expected) < NEAR


@torch.no_grad()
def test_pads_are_as_if_not_there(pair):
    _, half = pair
    prompts = [random_ids(length, seed=length).tolist() for length in (3, 9)]
    ids, mask = left_padded(prompts)
    batch = half(ids, attention_mask=mask).logits
    assert_same("row", batch[0, 6:], half(torch.tensor(prompts[:1])).logits[0], 0.02)  # a product of other sizes


@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_steps_of_training_are_finite_and_learn(pair, how):
    single, half = pair
    model = (half if how == "bfloat16" else single).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
            loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad.dtype == parameter.dtype, name
            assert parameter.grad.isfinite().all(), name
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_gradients_are_near_float32(pair):
    grads = []
    for each in pair:
        each.train()(IDS, labels=IDS).loss.backward()
        grads.append(torch.cat([parameter.grad.float().flatten() for parameter in each.parameters()]))
    assert apart(grads[1], grads[0]) < 2 * NEAR


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_generates(pair, options):
    single, half = pair
    options = {"max_new_tokens": 8, "pad_token_id": 0, "do_sample": False} | options
    prompts = [random_ids(length, seed=length).tolist() for length in (3, 9)]
    ids, mask = left_padded(prompts)
    out = half.generate(ids, attention_mask=mask, **options)
    assert out.shape == (2, 17)
    assert ((out >= 0) & (out < VOCAB)).all()
    if not options["do_sample"] and "num_beams" not in options:
        chosen = single(out, attention_mask=torch.cat([mask, torch.ones_like(out[:, 9:])], 1)).logits[:, 8:-1, :VOCAB]
        best = chosen.max(-1).values
        lost = best - chosen.gather(-1, out[:, 9:, None]).squeeze(-1)  # what float32 would rather have written
        assert (lost <= 0.05 * chosen.abs().max()).all()


@torch.no_grad()
def test_a_checkpoint_of_bfloat16(pair, tmp_path):
    _, half = pair
    half.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    assert_same("logits", again(IDS).logits, half(IDS).logits, 0)

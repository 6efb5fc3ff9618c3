"""What is measured of a model, against figures known by hand or computed plainly."""

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from longstream import AttentionConfig, HGRN2Config, HGRNConfig, HyenaConfig
from longstream.inspect.cost import count_cost, measure_cost, memory_work
from longstream.inspect.filters import LayerFilters, measure_filters
from longstream.inspect.gates import measure_gates, summarize
from longstream.inspect.reach import Reach, measure_reach
from longstream.inspect.states import effective_rank, measure_ranks
from longstream.layers import HGRN, HGRN2, Hyena, SlidingWindowAttention
from longstream.layers.modal import hankel_singular_values
from longstream.train.layer_scalars import LONGEST, Gates
from tests.inspect.subjects import language_subject


def gates_of(forget: list[list[float]], bound: list[float]) -> Gates:
    """Of forget gates (N, E) and their bounds (E,)."""
    f, b = torch.tensor(forget, dtype=torch.float64), torch.tensor(bound, dtype=torch.float64)
    return Gates(0, f.log(), 1 - f, b, 1 - b)


def test_time_scales_by_hand():
    found = summarize(gates_of([[0.5, 0.9, 1.0], [0.5, 0.99, 1.0], [0.5, 0.999, 1.0]], [0.0, 0.8, 0.5]))
    assert found.forced.tolist() == pytest.approx([1, 5, 2])
    assert found.median.tolist() == pytest.approx([2, 100, LONGEST])
    assert found.low.tolist() == pytest.approx([2, 10, LONGEST])
    # One forgetful gate undoes those that remember: the product decides, not the mean of 1 / (1 - f), which is 370.
    assert found.lasting.tolist() == pytest.approx([2, 1 / (1 - (0.9 * 0.99 * 0.999) ** (1 / 3)), LONGEST])


def test_saturation_by_hand():
    found = summarize(gates_of([[0.9995, 0.3], [0.9, 0.3004], [0.9, 0.5], [0.9, 0.9999]], [0.0, 0.3]))
    assert found.at_one == 2 / 8
    assert found.at_bound == 2 / 8
    assert found.stuck == 4 / 8
    both = summarize(gates_of([[0.9999]], [0.9998]))  # counted once
    assert (both.at_one, both.at_bound, both.stuck) == (1, 1, 1)


@pytest.mark.parametrize("conv_size", [0, 3])
@pytest.mark.parametrize("kind", [HGRNConfig, HGRN2Config])
def test_gates_are_those_of_the_layers(kind, conv_size):
    more: dict[str, Any] = {"expand_ratio": 4} if kind is HGRN2Config else {}
    subject = language_subject(kind(conv_size=conv_size, **more))
    found = measure_gates(subject)
    assert [each.layer for each in found] == [0, 1]
    assert found[0].forced.tolist() == [1] * 16
    assert found[1].forced.tolist() == pytest.approx([2] * 16)
    hidden = subject.model.model(subject.inputs, output_hidden_states=True).hidden_states
    blocks: list[Any] = list(subject.backbone.layers)
    for each, block, x in zip(found, blocks, hidden, strict=False):
        with torch.no_grad():
            z = block.mixer.forget_proj(block.mixer_norm(x))
            if conv_size:
                z = F.pad(z, (0, 0, conv_size - 1, 0)).unfold(1, conv_size, 1) @ block.mixer.forget_conv.weight[0]
        if conv_size:  # one channel: the others have other taps
            z = torch.stack([z[..., 0]], dim=-1)
        forget = each.layer / 2 + (1 - each.layer / 2) * z.double().sigmoid()
        lasting = 1 / (1 - forget.flatten(0, 1).log().mean(0).exp())
        assert each.lasting[: len(lasting)].tolist() == pytest.approx(lasting.tolist(), rel=1e-4)
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_effective_rank():
    outer = torch.outer(torch.arange(1.0, 6), torch.arange(2.0, 6))
    two = torch.diag(torch.tensor([3.0, 3.0, 0.0, 0.0]))
    assert effective_rank(torch.eye(4)).item() == pytest.approx(4)
    assert effective_rank(outer).item() == pytest.approx(1)
    assert effective_rank(torch.stack([two, torch.zeros(4, 4)])).tolist() == pytest.approx([2, 0])
    shares = np.array([0.75, 0.25])
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))).item() == pytest.approx(
        math.exp(-(shares * np.log(shares)).sum())
    )


def test_ranks_are_those_of_the_states():
    subject = language_subject(HGRN2Config(expand_ratio=4), T=40)
    found = measure_ranks(subject)
    _, state = subject.run(subject.inputs)
    assert state is not None
    for each in found:
        S = state.layers[each.layer].S  # (B, 4, 4, 4)
        p = np.linalg.svd(S.double().numpy(), compute_uv=False)
        p /= p.sum(-1, keepdims=True)
        assert each.after[0] == 1
        assert each.after[-1] == 40
        assert each.most == 4
        # torch's median of an even number is the lower one
        exact = np.sort(np.exp(-(p * np.log(p)).sum(-1)), axis=0)[1]
        assert each.ranks[-1].tolist() == pytest.approx(exact.tolist(), rel=1e-4)
        assert each.ranks[0].tolist() == pytest.approx([1] * 4, rel=1e-4)  # one token: an outer product


@pytest.mark.parametrize("unit", ["real", "complex"])
def test_ranks_of_hgrn_count_its_channels(unit):
    found = measure_ranks(language_subject(HGRNConfig(unit=unit), T=20, rows=1))
    assert [each.most for each in found] == [16, 16]
    for each in found:
        assert each.ranks.shape == (len(each.after), 1)
        assert float(each.ranks.min()) >= 1
        assert float(each.ranks.max()) <= 16


def test_the_distance_is_exact_and_the_median_of_the_changes():
    moved = torch.zeros(3, 101, dtype=torch.float64)
    moved[:, 0] = torch.tensor([1.0, 0.5, 0.0])  # the last moves nothing at all
    moved[0, 64], moved[1, 99], moved[2, 100] = 0.02, 0.004, 1.0
    reach = Reach((0, 1, 64), (1, 64, 101), moved)
    assert reach.distance(0.01) == 0  # of 64, 0 and 0
    assert reach.distance(0.005) == 64  # of 64, 99 and 0
    assert reach.changes.tolist() == [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.02, 0.004, 1.0]]


@pytest.mark.parametrize("mixer", [HGRN2Config(expand_ratio=4), HyenaConfig(max_seq_len=64, filter_width=8)])
def test_reach_is_what_a_changed_token_moves(mixer):
    subject = language_subject(mixer, T=32)
    reach = measure_reach(subject, changes=1)
    assert reach is not None
    random = np.random.default_rng(0)
    place = int(random.integers(8))
    clean = subject.inputs[:1]
    changed = clean.clone()
    while torch.equal(changed, clean):
        changed[0, place] = subject.inputs.flatten()[int(random.integers(subject.inputs.numel()))]
    with torch.no_grad():
        p, q = (subject.model(ids).logits.softmax(-1) for ids in (clean, changed))
    moved = (p - q).abs().sum(-1)[0] / 2
    assert float(moved[:place].max() if place else 0) < 1e-6
    assert (reach.after[0], reach.before[0], reach.farthest) == (0, 1, 24)
    for a, b, change in zip(reach.after, reach.before, reach.median, strict=True):
        assert change == pytest.approx(float(moved[place + a : place + b].max()), rel=1e-4, abs=1e-7)


def test_reach_grows_with_the_gates():
    mixer = HGRN2Config(expand_ratio=4, bias=True)
    reaches = [measure_reach(language_subject(mixer, T=128, gate=gate, lower_bound=None)) for gate in (0.05, 0.5, 0.95)]
    distances = [reach.distance() for reach in reaches if reach is not None]
    assert distances[0] < distances[1] < distances[2]
    assert distances[0] <= 7  # two layers of 0.05: a hundredth after some 2, and buckets double


def test_hankel_singular_values():
    random = np.random.default_rng(0)
    h = random.normal(size=(1, 3, 41))
    found = hankel_singular_values(torch.from_numpy(h))
    for channel in range(3):
        matrix = np.array([[h[0, channel, 1 + i + j] for j in range(20)] for i in range(20)])
        assert found[0, channel].tolist() == pytest.approx(np.linalg.svd(matrix, compute_uv=False).tolist(), abs=1e-9)
    t = torch.arange(64, dtype=torch.float64)
    one_mode = (0.95**t * torch.cos(0.3 * t))[None, None]
    assert (hankel_singular_values(one_mode)[0, 0] > 0).sum() == 2
    with pytest.raises(ValueError, match="at least 2 taps, got 1"):
        hankel_singular_values(torch.ones(1, 1, 1))


def test_filters_of_known_shape():
    t = torch.arange(100, dtype=torch.float64)
    taps = torch.stack([0.5**t, F.one_hot(torch.tensor(40), 100).double()])
    hankel = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.005]])
    span = torch.tensor([4, 41])
    window = torch.stack([0.9**t, torch.ones(100)])
    found = LayerFilters(0, taps, window, taps, hankel, (0, 1), span)
    assert found.modes().tolist() == [1, 2]
    assert found.window_span() is None
    only = LayerFilters(0, taps[:1], window[:1], taps, hankel, (0,), span)
    assert only.window_span() == 44  # 0.9^44 = 0.0097


def test_filters_are_those_of_the_layers():
    subject = language_subject(HyenaConfig(max_seq_len=50, order=3, filter_width=8, filter_layout="channel"))
    found = measure_filters(subject)
    assert [each.layer for each in found] == [0, 1]
    for each, mixer in zip(found, subject.mixers, strict=True):
        taps = mixer.filter(50).detach().flatten(0, 1).double()
        assert torch.equal(each.taps, taps)
        assert each.window is not None
        assert each.hankel.shape[1] == 25
        plain = copy.deepcopy(mixer.filter)
        plain.delta = None
        without = plain(50).detach().flatten(0, 1).double()
        assert float((without * each.window - taps).abs().max()) < 1e-6
        n = int(each.span[3])
        energy = taps[3].square()
        assert energy[:n].sum() >= 0.99 * energy.sum() > energy[: n - 1].sum()
        assert each.spectrum[3, 0].item() == pytest.approx(abs(taps[3].sum().item()), rel=1e-6)
    assert measure_filters(language_subject(HGRNConfig())) == []


def test_what_the_memory_costs_by_hand():
    assert memory_work(HGRN(16), 64) == 16
    assert memory_work(HGRN(16, unit="complex"), 64) == 64
    assert memory_work(HGRN2(16, expand_ratio=8), 64) == 3 * 16 * 8
    assert memory_work(SlidingWindowAttention(16, num_heads=2, window_size=8), 64) == 2 * 16 * (8 - 0.5)
    hyena = Hyena(16, max_seq_len=64, filter_width=8, filter_layers=1, positional_width=3)
    network = 3 * 8 + 8 * 8 + 8 * 16
    transforms = 3 * (5 / 4 * 128 * 7) / 64 * 16
    assert memory_work(hyena, 64) == pytest.approx(transforms + network)
    assert memory_work(hyena, 64, rows=4) == pytest.approx(transforms + network / 4)


def test_cost_of_a_model():
    layers = (HGRN2Config(expand_ratio=4), AttentionConfig(num_heads=2, window_size=8))
    subject = language_subject(HGRN2Config(expand_ratio=4), layers=layers)
    cost = count_cost(subject)
    assert cost.kinds == ("HGRN2", "SlidingWindowAttention")
    assert cost.weights == (4 * 16 * 16 + 3 * 16 * 32,) * 2
    assert cost.share == pytest.approx((3 * 16 * 4 + 2 * 16 * 7.5) / (2 * (1024 + 1536)))
    timed = measure_cost(subject)
    assert sorted(timed.seconds) == [16, 64]
    assert timed.growth == timed.seconds[64] / timed.seconds[16]

"""FeatureModel: frames in, vectors out, with every way of feeding, resets and summaries."""

import pytest
import torch

from longstream.models import Backbone, HGRN2Config, HGRNConfig, ModelConfig
from longstream.models.features import FeatureModel
from longstream.testing import assert_equivalent

CONFIG = ModelConfig(hidden_size=12, num_layers=2, intermediate_size=10, mixer=HGRN2Config(expand_ratio=4, conv_size=3))


def make(embed_dim: int = 5, outputs: str = "all") -> FeatureModel:
    torch.manual_seed(0)
    return FeatureModel(Backbone(CONFIG), embed_dim, outputs=outputs).double()


def frames(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def test_the_contract():
    assert_equivalent(make(), lambda T: frames(T, 5), lengths=(0, 1, 2, 9))


def test_a_projection_only_where_sizes_differ():
    assert make(12).input_projection is None
    assert make(5).input_projection is not None
    assert make(5).output_size == 12


def test_last_and_mean_are_of_the_frames_that_count():
    model, x = make(), frames(3, 6, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0]])
    x[mask == 0] = float("nan")
    y, _ = model(x, mask=mask)
    last, _ = model(x, mask=mask, outputs="last")
    mean, _ = model(x, mask=mask, outputs="mean")
    assert torch.equal(last, torch.stack([y[0, 5], y[1, 4], torch.zeros(12, dtype=torch.float64)]))
    assert torch.allclose(mean[1], y[1, 2:5].mean(0), atol=1e-14)
    assert (mean[2] == 0).all()
    loss = last.sum() + mean.sum()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss, list(model.parameters())))


def test_summaries_of_packed_sequences():
    model, x = make(outputs="last"), frames(1, 9, 5)
    bounds = [0, 4, 4, 9]
    last, state = model(x, cu_seqlens=bounds)
    alone = [model(x[:, a:b])[0] for a, b in ((0, 4), (4, 9))]
    assert torch.allclose(last, torch.cat([alone[0], torch.zeros_like(alone[0]), alone[1]]), atol=1e-12)
    mean, _ = model(x, cu_seqlens=bounds, outputs="mean")
    assert torch.allclose(mean[2], model(x[:, 4:], outputs="all")[0][0].mean(0), atol=1e-12)
    assert state.batch_size == 3


def test_a_reset_starts_an_episode_anew():
    model, x = make(), frames(2, 7, 5)
    _, before = model(frames(2, 4, 5))
    resets = torch.zeros(2, 7, dtype=torch.bool)
    resets[0, 3] = resets[1, 0] = resets[1, 5] = True
    y, after = model(x, before, resets=resets)
    first, _ = model(x[:1, :3], before.select([0]))
    second, last = model(x[:1, 3:])
    assert torch.allclose(y[:1], torch.cat([first, second], dim=1), atol=1e-12)
    assert torch.allclose(y[1:], torch.cat([model(x[1:, :5])[0], model(x[1:, 5:])[0]], dim=1), atol=1e-12)
    assert after.position.tolist() == [4, 2]
    for got, wanted in zip(after.select([0]).tensors(), last.tensors(), strict=True):
        assert torch.allclose(got, wanted, atol=1e-12)


def test_resets_step_by_step_are_the_same():
    model, x = make(), frames(3, 6, 5)
    resets = torch.rand(3, 6) < 0.4
    _, state = model(frames(3, 2, 5))
    y, after = model(x, state, resets=resets)
    outs = []
    for t in range(6):
        y_t, state = model.step(x[:, t], state, reset=resets[:, t])
        outs.append(y_t)
    assert torch.allclose(torch.stack(outs, dim=1), y, atol=1e-12)
    assert torch.equal(state.position, after.position)
    assert torch.allclose(state.layers[0].S, after.layers[0].S, atol=1e-12)


def test_a_reset_on_a_pad_counts_for_the_next_frame():
    model, x = make(), frames(1, 6, 5)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1]])
    resets = torch.tensor([[False, False, True, False, False, False]])
    y, _ = model(x, mask=mask, resets=resets)
    assert torch.allclose(y[:, 3:], model(x[:, 3:])[0], atol=1e-12)
    assert torch.allclose(y[:, :2], model(x[:, :2])[0], atol=1e-12)


def test_prefill_is_forward_without_its_output():
    model, x = make(outputs="last"), frames(2, 5, 5)
    state = model.prefill(x)
    assert torch.equal(state.layers[1].S, model(x)[1].layers[1].S)
    assert torch.allclose(model.step(x[:, 0], state)[0], model(x[:, :1], state)[0], atol=1e-12)


def test_bad_input():
    model, x = make(), frames(2, 3, 5)
    with pytest.raises(ValueError, match=r"FeatureModel: x must have shape \(B, T, E=5\), got \(2, 3, 6\)"):
        model(frames(2, 3, 6))
    with pytest.raises(ValueError, match="outputs must be one of"):
        model(x, outputs="first")
    with pytest.raises(ValueError, match="at least one frame for outputs='last', got none"):
        model(x[:, :0], outputs="last")
    with pytest.raises(ValueError, match=r"resets must be a bool tensor of shape \(2, 3\), got torch.int64"):
        model(x, resets=torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="resets and cu_seqlens exclude each other"):
        model(x[:1], resets=torch.zeros(1, 3, dtype=torch.bool), cu_seqlens=[0, 3])
    with pytest.raises(ValueError, match=r"FeatureModel.step: reset must be a bool tensor of shape \(2,\)"):
        model.step(x[:, 0], None, reset=torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="embed_dim must be an integer >= 1, got 0"):
        FeatureModel(Backbone(CONFIG), 0)
    with pytest.raises(TypeError, match=r"FeatureModel: x must be torch.float64 like the weights, got torch.float32"):
        model(x.float())
    with pytest.raises(TypeError, match=r"FeatureModel: x must be torch.float64 like the weights, got torch.float32"):
        model.step(x[:, 0].float())


@pytest.mark.parametrize(("rows", "T"), [(0, 3), (2, 0), (0, 0)])
def test_resets_of_nothing(rows: int, T: int):
    model = make()
    y, state = model(frames(rows, T, 5), model.init_state(rows), resets=torch.ones(rows, T, dtype=torch.bool))
    assert y.shape == (rows, T, 12)
    assert state.position.tolist() == [0] * rows


def test_images():
    """Two-dimensional mixers: no summaries of nothing, no padding, packing or resets, and no step."""
    torch.manual_seed(0)
    config = ModelConfig(hidden_size=12, num_layers=1, intermediate_size=10, mixer=HGRNConfig(direction="2d"))
    model = FeatureModel(Backbone(config), 5, outputs="mean").double()
    x = frames(2, 3, 4, 5)
    assert torch.allclose(model(x)[0], model(x, outputs="all")[0].mean((1, 2)))
    with pytest.raises(ValueError, match="at least one frame for outputs='mean', got none"):
        model(x[:, :, :0])
    whole = torch.ones(2, 3)
    for options in ({"mask": whole}, {"cu_seqlens": [0, 3]}, {"resets": whole == 1}):
        with pytest.raises(ValueError, match=f"FeatureModel: {next(iter(options))} must be None"):
            model(x, **options)
    with pytest.raises(RuntimeError, match="needs the whole sequence"):
        model.step(x[:, 0, 0])

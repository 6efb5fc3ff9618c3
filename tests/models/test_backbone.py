"""Block, Backbone, LanguageModel: configuration, hooks, training, bad input."""

from typing import Any

import pytest
import torch

from longstream.models import Backbone, HGRN2Config, LanguageModel, ModelConfig, next_token_loss
from tests.numerics import assert_no_worse

CONFIG = ModelConfig(hidden_size=12, num_layers=3, vocab_size=11, mixer=HGRN2Config(expand_ratio=4))


def changed(**changes: Any) -> ModelConfig:
    return ModelConfig(**{**vars(CONFIG), **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hidden_size": 0}, "ModelConfig.hidden_size must be an integer >= 1, got 0"),
        ({"num_layers": 1.5}, "ModelConfig.num_layers must be an integer >= 1, got 1.5"),
        ({"lower_bound": "yes"}, "ModelConfig.lower_bound must be one of .*None.*, got 'yes'"),
    ],
)
def test_bad_sizes_and_choices(changes: dict, says: str):
    with pytest.raises(ValueError, match=says):
        changed(**changes)


def test_unknown_and_wrong_options():
    with pytest.raises(TypeError, match="hiden_size"):
        ModelConfig(hiden_size=3, num_layers=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"ModelConfig\.mixer must be of .*got dict"):
        changed(mixer={"expand_ratio": 4})
    with pytest.raises(ValueError, match="HGRN2: expand_ratio must divide hidden_size 12, got 5"):
        Backbone(changed(mixer=HGRN2Config(expand_ratio=5)))
    with pytest.raises(ValueError, match="query_activation must be one of"):
        Backbone(changed(mixer=HGRN2Config(expand_ratio=4, query_activation="swish")))
    with pytest.raises(ValueError, match="norm must be one of"):
        Backbone(changed(mixer=HGRN2Config(expand_ratio=4, norm="batch")))
    with pytest.raises(ValueError, match="vocab_size must be given"):
        LanguageModel(changed(vocab_size=None))
    with pytest.raises(ValueError, match="unknown backend 'fast'"):
        Backbone(changed(mixer=HGRN2Config(expand_ratio=4, backend="fast")))(torch.zeros(1, 1, 12))


def test_width_of_the_mlp():
    assert changed().mlp_size == 256
    assert changed(hidden_size=2048).mlp_size == 5632  # flash-linear-attention's 1.3B
    assert changed(intermediate_size=40).mlp_size == 40


def test_bad_input():
    backbone, model = Backbone(CONFIG), LanguageModel(CONFIG)
    x = torch.zeros(2, 3, 12)
    with pytest.raises(ValueError, match=r"Backbone: x must have shape \(B, T, D=12\), got \(2, 3, 13\)"):
        backbone(torch.zeros(2, 3, 13))
    with pytest.raises(ValueError, match=r"mask must have shape \(B=2, T=3\), got \(2, 4\)"):
        backbone(x, mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="mask must hold only 0"):
        backbone(x, mask=torch.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="mask and cu_seqlens exclude each other"):
        backbone(x[:1], mask=torch.ones(1, 3), cu_seqlens=[0, 3])
    with pytest.raises(ValueError, match="cu_seqlens needs one packed row"):
        backbone(x, cu_seqlens=[0, 3])
    with pytest.raises(ValueError, match="ids must be an integer tensor of shape"):
        model(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="ids must be an integer tensor of shape"):
        model(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 11\), got 11"):
        model(torch.tensor([[0, 11]]))


def test_a_tied_head_is_the_embedding():
    model = LanguageModel(changed(tie_embeddings=True))
    assert model.lm_head.weight is model.embeddings.weight
    untied = sum(p.numel() for p in LanguageModel(CONFIG).parameters())
    assert untied - sum(p.numel() for p in model.parameters()) == 11 * 12


def test_hidden_states_and_run_block():
    torch.manual_seed(0)
    backbone, x = Backbone(CONFIG), torch.randn(2, 5, 12)
    seen: list[torch.Tensor] = []
    ran = []

    def run(block: Any, *args: Any, **kwargs: Any) -> Any:
        ran.append(block)
        return block(*args, **kwargs)

    y, _ = backbone(x, run_block=run, hidden_states=seen)
    assert ran == list(backbone.layers)
    assert len(seen) == CONFIG.num_layers + 1
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[-1], y)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    padded: list[torch.Tensor] = []
    backbone(x, mask=mask, hidden_states=padded)
    alone: list[torch.Tensor] = []
    backbone(x[:1, 2:], hidden_states=alone)
    for a, b in zip(padded, alone, strict=True):
        assert a.shape == x.shape
        torch.testing.assert_close(a[:1, 2:], b)
        assert (a[0, :2] == 0).all()


def test_a_wrapped_block_is_still_run():
    """As sharding, checkpoint wrappers and regional compilation wrap them."""

    class Wrapper(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module):
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.inner(*args, **kwargs)

    torch.manual_seed(0)
    backbone, x = Backbone(CONFIG), torch.randn(2, 5, 12)
    y, _ = backbone(x)
    for i, block in enumerate(backbone.layers):
        backbone.layers[i] = Wrapper(block)
    assert torch.equal(backbone(x)[0], y)


def test_lower_bounds_rise_with_depth_and_are_trained():
    torch.manual_seed(0)
    backbone = Backbone(CONFIG)
    backbone(torch.randn(1, 4, 12))[0].square().sum().backward()
    assert backbone.lower_bounds is not None
    assert backbone.lower_bounds.grad is not None
    assert backbone.lower_bounds.grad.abs().sum() > 0
    assert Backbone(changed(lower_bound=None)).lower_bounds is None


def test_which_sum_bounds_the_gates_matters_once_trained():
    torch.manual_seed(0)
    x, gamma = torch.randn(1, 6, 12), torch.randn(3, 12)
    outs = []
    for kind in ("inclusive", "exclusive", None):
        torch.manual_seed(1)
        backbone = Backbone(changed(lower_bound=kind))
        if backbone.lower_bounds is not None:
            backbone.lower_bounds.data = gamma
        outs.append(backbone(x)[0])
    assert not torch.allclose(outs[0], outs[1])
    assert not torch.allclose(outs[0], outs[2])


def test_thirty_steps_learn_eight_sequences():
    torch.manual_seed(0)
    model = LanguageModel(changed(hidden_size=32, num_layers=2, mixer=HGRN2Config(expand_ratio=16)))
    ids = torch.randint(11, (8, 24))
    optimizer = torch.optim.AdamW(model.parameters(), lr=7e-3)
    losses = []
    for _ in range(60):
        loss = next_token_loss(model(ids)[0], ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.3
    assert losses[-1] < 0.3


def test_loss_ignores_minus_100():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[1, 2:] = -100
    kept = torch.cat([logits[0, :4], logits[1, :1]]), torch.cat([labels[0, 1:], labels[1, 1:2]])
    torch.testing.assert_close(next_token_loss(logits, labels), torch.nn.functional.cross_entropy(*kept))


def on_the_loop(model: LanguageModel) -> LanguageModel:
    """The same weights with the plain loop as backend."""
    loop = LanguageModel(changed(initializer_range=0.1, mixer=HGRN2Config(expand_ratio=4, backend="reference")))
    loop.load_state_dict(model.state_dict())
    return loop


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_loses_no_more_than_the_loop(autocast: bool):
    torch.manual_seed(0)
    model = LanguageModel(changed(initializer_range=0.1))
    ids = torch.randint(11, (2, 130))
    loop = on_the_loop(model)
    exact, _ = on_the_loop(model).double()(ids)
    if not autocast:
        model, loop = model.bfloat16(), loop.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        (logits, state), (expected, _) = model(ids), loop(ids)
        logits.float().square().sum().backward()
    assert logits.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in state.tensors()[:-1])
    assert_no_worse("logits", logits, expected, exact)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_bounds_of_a_single_layer_are_in_the_graph():
    """With a gradient of 0: what runs in several processes waits for every parameter."""
    backbone = Backbone(changed(num_layers=1))
    backbone(torch.randn(1, 4, 12))[0].square().sum().backward()
    assert backbone.lower_bounds is not None
    assert torch.equal(backbone.lower_bounds.grad, torch.zeros(1, 12))  # type: ignore[arg-type]


def test_a_mask_does_not_run_hooks_twice():
    backbone, calls = Backbone(CONFIG), []
    for module in (backbone, *backbone.layers):
        module.register_forward_hook(lambda module, *_: calls.append(module))
    backbone(torch.randn(2, 4, 12), mask=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]))
    assert len(calls) == 1 + CONFIG.num_layers


def test_inputs_unlike_the_weights():
    mixer = CONFIG.build_mixer(0)
    with pytest.raises(TypeError, match=r"HGRN2: x must be torch.float32 like the weights, got torch.float64"):
        mixer(torch.zeros(1, 2, 12, dtype=torch.float64))
    with pytest.raises(ValueError, match="HGRN2: x must be on cpu like the weights, got meta"):
        mixer(torch.zeros(1, 2, 12, device="meta"))
    for wrong in ([], [0, 1.5, 3], torch.tensor(3)):
        with pytest.raises(ValueError, match="cu_seqlens must"):
            mixer(torch.zeros(1, 3, 12), cu_seqlens=wrong)


def test_a_model_on_the_meta_device_has_shapes():
    with torch.device("meta"):
        model = LanguageModel(CONFIG)
        logits, state = model(torch.zeros(2, 70, dtype=torch.long))
    assert logits.shape == (2, 70, 11)
    assert state.layers[0].S.shape == (2, 3, 4, 4)


def test_ids_may_be_bytes():
    model = LanguageModel(CONFIG)
    ids = torch.tensor([[1, 2, 10]])
    assert torch.equal(model(ids.to(torch.uint8))[0], model(ids)[0])
    with pytest.raises(ValueError, match=r"LanguageModel.step: ids_t must have shape \(B,\), got \(1, 3\)"):
        model.step(ids, None)


@pytest.mark.parametrize(
    "options",
    [
        {"expand_ratio": 0},
        {"expand_ratio": 2.0},
        {"query_activation": "relu"},
        {"value_activation": "relu"},
        {"norm": "batch"},
        {"norm_eps": -1},
        {"conv_size": -1},
        {"query_scale": "big"},
    ],
)
def test_a_mixer_configuration_refuses(options: dict):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"HGRN2Config: {name} must be"):
        HGRN2Config(**options)


def test_one_number_has_one_fingerprint():
    one = changed(mixer=HGRN2Config(expand_ratio=4, query_scale=1))
    assert (
        Backbone(one).fingerprint == Backbone(changed(mixer=HGRN2Config(expand_ratio=4, query_scale=1.0))).fingerprint
    )

"""Every mixer in one backbone: hybrids, what they share, their parameters, presets, decoding of Hyena layers."""

from typing import Any

import pytest
import torch

from longstream.models import (
    AttentionConfig,
    Backbone,
    Block,
    HGRN2Config,
    HGRNConfig,
    HyenaConfig,
    LanguageModel,
    ModelConfig,
    State,
    count_parameters,
    distill,
    generate,
    hyena_dna,
    parameter_groups,
    set_decode,
)
from longstream.testing import assert_equivalent

HGRN, HGRN2 = HGRNConfig(conv_size=3), HGRN2Config(expand_ratio=4)
HYENA = HyenaConfig(max_seq_len=300, filter_width=8, positional_width=5)
ATTENTION = AttentionConfig(num_heads=3, window_size=7)
HYBRID = (HGRN2, HYENA, HGRN, ATTENTION)


def spread(model: Backbone, *names: str) -> list[float]:
    return [model.get_parameter(f"layers.0.{name}.weight").std().item() for name in names]


def config(**changes: Any) -> ModelConfig:
    given = {"hidden_size": 12, "num_layers": 4, "intermediate_size": 10, "layers": HYBRID, "vocab_size": 11}
    return ModelConfig(**{**given, "initializer_range": 0.3, **changes})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_contract_of_a_mixture_of_all(dtype: torch.dtype):
    torch.manual_seed(0)
    assert_equivalent(LanguageModel(config()).to(dtype), lengths=(0, 1, 2, 63))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mixer", HYBRID, ids=lambda mixer: type(mixer).__name__)
def test_the_contract_of_every_block(mixer: Any, dtype: torch.dtype):
    torch.manual_seed(0)
    assert_equivalent(Block(config(layers=(mixer,), mlp="gelu", norm="layer")).to(dtype), lengths=(0, 1, 2, 63))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_contract_of_the_authors_block(dtype: torch.dtype):
    """Their language models: a GLU without an activation, norms without weights."""
    torch.manual_seed(0)
    block = Block(config(layers=(HYBRID[0],), mlp="bilinear", norm="rms_no_weight"))
    assert {name for name, _ in block.named_parameters()} >= {"mlp.gate_proj.weight", "mlp.down_proj.weight"}
    assert not any(name.startswith(("mixer_norm", "mlp_norm")) for name, _ in block.named_parameters())
    assert_equivalent(block.to(dtype), lengths=(0, 1, 2, 9))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "mixer", [*HYBRID, None], ids=lambda mixer: "mixture" if mixer is None else type(mixer).__name__
)
def test_the_contract_past_many_chunks(mixer: Any, dtype: torch.dtype):
    torch.manual_seed(0)
    module = LanguageModel(config()) if mixer is None else Block(config(layers=(mixer,)))
    assert_equivalent(module.to(dtype), lengths=(257,))


def test_a_pattern_is_repeated_over_the_depth():
    model = Backbone(config(layers=[HGRN2, ATTENTION], num_layers=5))
    names = [type(model.get_submodule(f"layers.{i}.mixer")).__name__ for i in range(5)]
    assert names == ["HGRN2", "SlidingWindowAttention"] * 2 + ["HGRN2"]
    assert model.config.layers == (HGRN2, ATTENTION)
    assert config(layers=None, mixer=HYENA).mixers == (HYENA,) * 4


def test_lower_bounds_are_of_the_layers_with_gates():
    assert Backbone(config(layers=(HYENA, ATTENTION))).lower_bounds is None
    wide = Backbone(config(layers=(HGRNConfig(expand_ratio=2), ATTENTION)))
    assert tuple(wide.get_parameter("lower_bounds").shape) == (4, 24)
    with pytest.raises(ValueError, match=r"forget gates of one width to share lower bounds, got expand_ratio \[1, 2\]"):
        config(layers=(HGRNConfig(expand_ratio=2), HGRN2))
    assert Backbone(config(layers=(HGRNConfig(expand_ratio=2), HGRN2), lower_bound=None)).lower_bounds is None


def test_bad_mixtures():
    with pytest.raises(ValueError, match="layers must name 1 to num_layers=1 mixers, got 4"):
        config(num_layers=1)
    with pytest.raises(TypeError, match=r"ModelConfig.layers must be of \['HGRNConfig', .*got str"):
        config(layers=("hgrn2",))
    for name in ("mlp", "norm"):
        with pytest.raises(ValueError, match=f"ModelConfig.{name} must be one of"):
            config(**{name: "relu"})
    with pytest.raises(ValueError, match=r"dropout must be a number in \[0, 1\), got 1"):
        config(dropout=1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": (HGRNConfig(unit="complex", expand_ratio=2), ATTENTION), "tie_embeddings": True},
        {"layers": (HYENA,), "mlp": "gelu", "norm": "layer", "vocab_multiple": 8},
        {"num_layers": 7, "lower_bound": None},
    ],
)
def test_parameters_are_counted_without_making_them(changes: dict[str, Any]):
    cfg = config(**changes)
    assert count_parameters(cfg) == sum(p.numel() for p in LanguageModel(cfg).parameters())


def test_every_parameter_is_in_one_group_and_hints_are_honored():
    mixer = HyenaConfig(max_seq_len=20, filter_lr=1e-4, filter_weight_decay=0.5, positions_lr=1e-5, window_lr=3e-5)
    model = Backbone(config(layers=(mixer, HGRN2), num_layers=2))
    groups = parameter_groups(model, lr=1e-2, weight_decay=0.1)
    names = [name for group in groups for name in group["names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(names)
    of = {name: (group["lr"], group["weight_decay"]) for group in groups for name in group["names"]}
    assert of["layers.1.mixer.q_proj.weight"] == (1e-2, 0.1)
    assert of["layers.1.mlp_norm.weight"] == of["lower_bounds"] == (1e-2, 0.0)
    assert {pair for name, pair in of.items() if ".filter" in name} >= {(1e-4, 0.5), (1e-5, 0.0), (3e-5, 0.0)}
    torch.optim.AdamW([{k: v for k, v in g.items() if k != "names"} for g in groups])


def test_initialization_keeps_filters_alive_and_shrinks_residual_projections():
    torch.manual_seed(0)
    model = Backbone(config(hidden_size=64, layers=(HyenaConfig(max_seq_len=256),), rescale_residual=True))
    taps = model.get_submodule("layers.0.mixer.filter")(256)
    assert taps.std() > 0.01  # 1e-5 and less where the model's initialization reaches it
    assert spread(model, "mixer.in_proj", "mlp.up_proj") == pytest.approx([0.3] * 2, rel=0.1)
    assert spread(model, "mixer.out_proj", "mlp.down_proj") == pytest.approx([0.3 * 8**-0.5] * 2, rel=0.1)


def test_a_state_of_a_mixture_is_saved_and_continued_bit_for_bit(tmp_path):
    model, ids = LanguageModel(config()).eval(), torch.randint(11, (2, 150))
    with torch.no_grad():
        _, state = model(ids[:, :130])
        state.save(tmp_path / "state.safetensors")
        read = State.load(tmp_path / "state.safetensors")
        for t in range(130, 150):
            logits, state = model.step(ids[:, t], state)
            again, read = model.step(ids[:, t], read)
            assert torch.equal(logits, again)
    assert all(torch.equal(a, b) for a, b in zip(state.tensors(), read.tensors(), strict=True))


def test_rows_of_different_lengths_join():
    model = Backbone(config()).double()
    xs = [torch.randn(1, T, 12, dtype=torch.float64) for T in (3, 200)]
    joined = State.cat([model(x)[1] for x in xs])
    assert joined.position.tolist() == [3, 200]
    new = torch.randn(2, 2, 12, dtype=torch.float64)
    y, _ = model(new, joined)
    for row, x in enumerate(xs):
        whole, _ = model(torch.cat([x, new[row : row + 1]], dim=1))
        assert torch.allclose(y[row : row + 1], whole[:, -2:], atol=1e-10)
    with pytest.raises(ValueError, match=r"State\.cat: states must be of one model, got fingerprints"):
        State.cat([joined, Backbone(config(num_layers=5)).init_state(1)])


def test_hyena_dna():
    model = LanguageModel(hyena_dna())
    assert model.lm_head.weight is model.embeddings.weight
    assert tuple(model.embeddings.weight.shape) == (16, 128)
    (made,) = generate(model.eval(), [[7, 8, 9, 10]], 20, seed=0, temperature=5.0)
    assert max(made) < 12  # never one of the four classes that only fill up the embeddings
    with pytest.raises(ValueError, match="size must be one of"):
        hyena_dna("huge")


def test_a_text_that_would_not_fit_is_refused_beforehand():
    model = LanguageModel(config())
    with pytest.raises(ValueError, match=r"must fit into max_seq_len=300, got 3 \+ 299"):
        generate(model, [[1, 2, 3]], 299)
    assert len(generate(model, [[1] * 290], 11, seed=0)[0]) == 11


def test_decoding_by_modes_is_near_and_keeps_the_contract():
    torch.manual_seed(0)
    smooth = HyenaConfig(max_seq_len=64, filter_width=8, positional_width=3, frequency=1.0)
    model = Backbone(config(layers=(smooth, HGRN2), num_layers=2)).double().eval()
    x = torch.randn(1, 40, 12, dtype=torch.float64)
    exact, tiled = model(x)
    reports = distill(model, tol=1e-4)
    assert list(reports) == ["layers.0.mixer"]
    assert next(iter(reports.values())).error <= 1e-4
    assert (model(x)[0] - exact).abs().max() < 1e-2 * exact.abs().max()
    assert_equivalent(model, lengths=(0, 1, 20))
    with pytest.raises(TypeError, match="state must be"):
        model(x, tiled)
    set_decode(model, "tiled")
    assert torch.equal(model(x)[0], exact)


def test_a_distillation_that_misses_changes_nothing():
    """The second layer misses; both stay as they were, before any distillation and after one."""
    torch.manual_seed(0)
    smooth = HyenaConfig(max_seq_len=64, filter_width=8, positional_width=3, frequency=1.0)
    rough = HyenaConfig(max_seq_len=64, filter_width=8, positional_width=33, frequency=50.0)
    model = Backbone(config(layers=(smooth, rough), num_layers=2)).double().eval()
    x = torch.randn(1, 40, 12, dtype=torch.float64)
    for _ in range(2):
        before, _ = model(x)
        with pytest.raises(ValueError, match=r"distill: layer layers\.1\.mixer: .*0\.01"):
            distill(model, 4, tol=0.01)
        assert torch.equal(model(x)[0], before)
        distill(model, 2)


def test_decoding_is_set_for_all_layers_or_for_none():
    both_ways = HyenaConfig(max_seq_len=64, filter_width=8, positional_width=5, causal=False)
    model = Backbone(config(layers=(HYENA, both_ways))).double().eval()
    x = torch.randn(1, 40, 12, dtype=torch.float64)
    exact, _ = model(x)
    for refused in (lambda: set_decode(model, "naive"), lambda: distill(model, 2)):
        with pytest.raises(RuntimeError, match="causal is False"):
            refused()
        assert [block.mixer.decode for block in model.layers] == ["tiled"] * 4  # type: ignore[union-attr]
    model = Backbone(config(layers=(HYENA,)))
    with pytest.raises(RuntimeError, match=r"needs modal filters; call distill\(\)"):
        set_decode(model, "modal")
    assert model(x.float())[0].shape == exact.shape
    with pytest.raises(ValueError, match="mode must be one of"):
        set_decode(model, "fast")


def test_a_model_without_hyena_has_nothing_to_distill():
    with pytest.raises(ValueError, match="must have a Hyena layer, got Backbone without one"):
        distill(Backbone(config(layers=(HGRN2,))), tol=0.1)


@pytest.mark.parametrize(
    "mixer",
    [HGRNConfig(direction="bidirectional"), HyenaConfig(max_seq_len=300, causal=False)],
    ids=lambda mixer: type(mixer).__name__,
)
def test_a_mixer_that_looks_both_ways_has_no_step(mixer: Any):
    """Alone or among others; a first token must not pass as one that is followed by nothing."""
    model = LanguageModel(config(layers=(HGRN2, mixer))).double()
    assert not model.causal
    assert_equivalent(model, lengths=(0, 1, 9))
    x_t, ids = torch.randn(2, 12, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    for who, call in {
        "Block.step": lambda: model.backbone.layers[1].step(x_t, None),  # type: ignore[operator]
        "Backbone.step": lambda: model.backbone.step(x_t, None),
        "LanguageModel.step": lambda: model.step(ids, None),
        "generate": lambda: generate(model, [[1]], 1),
    }.items():
        with pytest.raises(RuntimeError, match=f"{who}: a mixer that is not causal needs the whole sequence"):
            call()


def test_images_take_no_padding_and_no_packing():
    model = Backbone(config(layers=(HGRNConfig(direction="2d"),)))
    x, mask = torch.randn(1, 3, 4, 12), torch.tensor([[1, 1, 0]])
    for module, who in ((model, "Backbone"), (model.layers[0], "Block")):
        with pytest.raises(ValueError, match=f"{who}: mask must be None, got Tensor: '2d' takes whole images"):
            module(x, mask=mask)
    with pytest.raises(ValueError, match="Backbone: cu_seqlens must be None"):
        model(x, cu_seqlens=[0, 3])

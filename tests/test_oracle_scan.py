"""The oracles of scan, long convolution and the layers on them: finite differences, foreign numbers, sums by hand.

One file for both oracle modules, since a golden file of a layer holds the op below it to account too.
"""

import json

import numpy as np
import pytest

from tests import golden, oracle, oracle_layers, oracle_scan
from tests.numerics import SAME_AS_GOLDEN, assert_same
from tests.oracle_layers import HGRN_CONFIGS, hgrn_params
from tests.test_oracle import check_gradients

HGRN1 = ("layer", "layer_h0", "layer_nolb", "layer_leftpad", "shortconv_layer")
OFFICIAL = {
    "hgrn1_official_hgru1d_causal": {"unit": "complex"},
    "hgrn1_official_hgru1d_bidir_shared": {"unit": "complex", "direction": "bidirectional"},
    "hgrn1_official_bihgru1d": {"unit": "complex", "direction": "bidirectional", "shared_theta": False},
    "hgrn1_official_hgru2d": {"unit": "complex", "direction": "2d"},
    "hgrn1_official_real1d_causal": {},
    "hgrn1_official_real2d": {"direction": "2d"},
    "hgrn2_official_hgru1_real_er2": {"expand_ratio": 2, "norm_first": False, "gate_activation": "sigmoid"},
}
HGRN_NAMES = {  # fla's, then the authors'
    "i_proj": "candidate_proj",
    "f_proj": "forget_proj",
    "g_proj": "out_gate_proj",
    "o_proj": "out_proj",
    "g_norm": "norm",
    "i_conv1d": "candidate_conv",
    "f_conv1d": "forget_conv",
    "input_proj": "candidate_proj",
    "lambda_proj": "forget_proj",
    "forget_gate": "forget_proj",
    "gate": "out_gate_proj",
    "output_gate": "out_gate_proj",
    "theta_forward": "theta",
}
HYENA = (
    "safari_full_o2_L53",
    "safari_full_o2_L64",
    "safari_full_o2_normalized_short5_gelu_L53",
    "safari_full_o3_L64",
    "standalone_defaults_o2_L64",
    "standalone_o2_lmax53_L53",
    "standalone_o2_lmax64_L53",
    "standalone_o2_lmax64_L64",
    "standalone_o2_lrpos0_L53",
    "standalone_o2_nomod_L53",
    "standalone_o2_shift005_L53",
    "standalone_o3_lmax53_L53",
    "standalone_o3_lmax64_L53",
    "standalone_o3_lmax64_L64",
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# The scan


def test_gated_scan_by_hand():
    x, log_forget = np.array([10.0, 100.0, 1.0]).reshape(1, 3, 1), np.log([0.5, 0.25, 1.0]).reshape(1, 3, 1)
    out, final, _ = oracle_scan.gated_scan(x, log_forget, np.full((1, 1), 8.0))
    assert_same("out", out.ravel(), [14, 103.5, 104.5])
    assert_same("final_state", final.ravel(), [104.5])
    out, final, _ = oracle_scan.gated_scan(x, log_forget, np.full((1, 1), 8.0), reverse=True)
    assert_same("out reversed", out.ravel(), [61.125, 102.25, 9])
    assert_same("final_state reversed", final.ravel(), [61.125])


def test_complex_scan_by_hand():
    """A quarter turn and a half: from 8 to 4i + 1, then a further quarter turn to -2 + i/2, plus 3i."""
    x = np.array([[[1.0], [0.0]], [[0.0], [3.0]]])[None]
    log_forget, start = np.log([[[0.5], [0.5]]]), np.array([[[8.0], [0.0]]])
    out, final, _ = oracle_scan.gated_scan(x, log_forget, start, theta=np.array([np.pi / 2]))
    assert_same("out", out.ravel(), [1, 4, -2, 3.5])
    assert_same("final_state", final.ravel(), [-2, 3.5])


@pytest.mark.parametrize("cu_seqlens", [None, [0, 0, 3, 4, 4, 7, 7]], ids=["batch", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("pair", [False, True], ids=["real", "complex"])
def test_gated_scan(pair, reverse, cu_seqlens, rng):
    B, N = (2, 2) if cu_seqlens is None else (1, 6)
    two = (2,) if pair else ()
    inputs = {"x": rng.standard_normal((B, 7, *two, 3)), "log_forget": np.log(rng.uniform(0.1, 0.99, (B, 7, 3)))}
    inputs |= {"initial_state": rng.standard_normal((N, *two, 3))}
    inputs |= {"theta": rng.uniform(-3, 3, 3)} if pair else {}
    d_out, d_final = rng.standard_normal((B, 7, *two, 3)), rng.standard_normal((N, *two, 3))
    options = {"reverse": reverse, "cu_seqlens": cu_seqlens}

    def loss(i):
        out, final, _ = oracle_scan.gated_scan(**i, **options)
        return (d_out * out).sum() + (d_final * final).sum()

    check_gradients(loss, inputs, oracle_scan.gated_scan(**inputs, **options)[2](d_out, d_final), rng)


def test_complex_scan_without_angle_is_two_real_ones(rng):
    x, log_forget = rng.standard_normal((2, 5, 2, 3)), np.log(rng.uniform(0.1, 0.99, (2, 5, 3)))
    out, final, _ = oracle_scan.gated_scan(x, log_forget, theta=np.zeros(3))
    for part in (0, 1):
        real, last, _ = oracle_scan.gated_scan(x[:, :, part], log_forget)
        assert_same("out", out[:, :, part], real)
        assert_same("final_state", final[:, part], last)


# The long convolution


def test_long_conv_by_hand():
    x, filters, history = np.array([1.0, 2.0]).reshape(1, 2, 1), np.array([[1.0, 10.0, 100.0]]), np.array([[[7.0]]])
    assert_same("out", oracle_scan.long_conv(x, filters)[0].ravel(), [1, 12])
    assert_same("after", oracle_scan.long_conv(x, filters, np.array([0.5]), history)[0].ravel(), [71.5, 713])
    two_sided = oracle_scan.long_conv_two_sided(x, filters, np.array([[0.1, 0.01]]), np.array([0.5]))[0]
    assert_same("two-sided", two_sided.ravel(), [1.5 + 0.1 + 0.02, 12 + 1 + 0.2])


@pytest.mark.parametrize("L", [1, 2, 64])
def test_long_conv_golden(L):
    a = golden.load(f"hyena_fftconv_L{L}")
    u, k, k_rev, skip = a["in.u"].swapaxes(1, 2), a["in.k"], a["in.k_rev"], a["in.D"]
    causal, _ = oracle_scan.long_conv(u, k, skip)
    two_sided, _ = oracle_scan.long_conv_two_sided(u, k, k_rev, skip)
    assert_same("causal", causal, a["out.causal"].swapaxes(1, 2), SAME_AS_GOLDEN)
    assert_same("two_sided", two_sided, a["out.two_sided"].swapaxes(1, 2), SAME_AS_GOLDEN)


@pytest.mark.parametrize("skip", [True, False], ids=["skip", "no_skip"])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 0, 3, 4, 4, 7, 7]], ids=["batch", "packed"])
@pytest.mark.parametrize("L", [1, 4, 9])
def test_long_conv(L, cu_seqlens, skip, rng):
    B = 2 if cu_seqlens is None else 1
    inputs = {"x": rng.standard_normal((B, 7, 3)), "filters": rng.standard_normal((3, L))}
    inputs |= {"skip": rng.standard_normal(3)} if skip else {}
    inputs |= {"history": rng.standard_normal((B, 5, 3))} if cu_seqlens is None else {}
    d_out = rng.standard_normal((B, 7, 3))
    grads = oracle_scan.long_conv(**inputs, cu_seqlens=cu_seqlens)[1](d_out)
    loss = lambda i: (d_out * oracle_scan.long_conv(**i, cu_seqlens=cu_seqlens)[0]).sum()  # noqa: E731
    check_gradients(loss, inputs, {n: grads[n] for n in inputs}, rng)


@pytest.mark.parametrize("cu_seqlens", [None, [0, 0, 3, 4, 4, 7, 7]], ids=["batch", "packed"])
@pytest.mark.parametrize(("L", "L_reverse"), [(1, 4), (9, 3)])
def test_long_conv_two_sided(L, L_reverse, cu_seqlens, rng):
    B = 2 if cu_seqlens is None else 1
    inputs = {"x": rng.standard_normal((B, 7, 3)), "filters": rng.standard_normal((3, L))}
    inputs |= {"filters_reverse": rng.standard_normal((3, L_reverse)), "skip": rng.standard_normal(3)}
    d_out = rng.standard_normal((B, 7, 3))
    grads = oracle_scan.long_conv_two_sided(**inputs, cu_seqlens=cu_seqlens)[1](d_out)
    loss = lambda i: (d_out * oracle_scan.long_conv_two_sided(**i, cu_seqlens=cu_seqlens)[0]).sum()  # noqa: E731
    check_gradients(loss, inputs, grads, rng)


@pytest.mark.parametrize(
    ("length", "runs"),
    [
        (0, []),
        (63, []),
        (64, [(0, 0, 64)]),
        (191, [(1, 0, 128)]),
        (192, [(1, 0, 128), (0, 128, 192)]),
        (64 * 13 + 5, [(3, 0, 512), (2, 512, 768), (0, 768, 832)]),
    ],
)
def test_runs_are_the_bits_of_a_counter(length, runs):
    assert oracle_scan.long_conv_runs(length) == runs


@pytest.mark.parametrize("length", [0, 1, 64, 127, 199])
@pytest.mark.parametrize("L", [1, 3, 100, 400])
def test_long_conv_state_continues_the_convolution(length, L, rng):
    """Right after a run of inputs, the run alone gives what is pending; all inputs together are in the state."""
    x, filters = rng.standard_normal((length, 2)), rng.standard_normal((2, L))
    fields, vjp = oracle_scan.long_conv_state(x, filters)
    runs = oracle_scan.long_conv_runs(length)
    inputs = [fields[f"inputs_{level}"] for level, _, _ in runs] + [fields["recent"][: length % 64]]
    assert_same("inputs", np.concatenate(inputs), x)
    for level, start, end in runs:
        alone, _ = oracle_scan.long_conv(np.zeros((1, end - start, 2)), filters, history=x[None, start:end])
        assert_same(f"pending_{level}", fields[f"pending_{level}"], alone[0])
    d = {name: rng.standard_normal(a.shape) for name, a in fields.items() if name != "length"}

    def loss(i):
        got, _ = oracle_scan.long_conv_state(**i)
        return sum((d[name] * got[name]).sum() for name in d)

    check_gradients(loss, {"x": x, "filters": filters}, vjp(d), rng)


# HGRN


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (name, shape)
        for name, config in HGRN_CONFIGS.items()
        for shape in (("plain",) if config.get("direction") == "2d" else ("plain", "masked", "packed"))
    ],
)
def test_hgrn(name, shape, rng):
    config, D, T = HGRN_CONFIGS[name], 4, 6
    causal, picture = config.get("direction", "causal") == "causal", config.get("direction") == "2d"
    B, options = 2, {}
    if shape == "masked":
        options = {"mask": np.array([[0, 0, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0]])}
    if shape == "packed":
        B, options = 1, {"cu_seqlens": [0, 3, 3, 4, 6]}
    x_shape = (B, 2, 3, D) if picture else (B, T, D)
    shapes = oracle_layers.hgrn_state_shapes(B if shape != "packed" else 4, D, config)
    inputs = hgrn_params(D, config, rng) | {"x": rng.standard_normal(x_shape)}
    inputs |= {"bound": rng.uniform(0.1, 0.8, D * config.get("expand_ratio", 1))}
    inputs |= {"h": rng.standard_normal(shapes[0]), "conv": rng.standard_normal(shapes[1])} if causal else {}
    d_y, d_state = rng.standard_normal(x_shape), [rng.standard_normal(s) for s in shapes] if causal else []

    def run(i):
        state = (i["h"], i["conv"]) if causal else None
        return oracle_layers.hgrn(i, i["x"], state, bound=i["bound"], **options, **config)

    def loss(i):
        y, state, _ = run(i)
        return (d_y * y).sum() + sum((d * s).sum() for d, s in zip(d_state, state or (), strict=True))

    y, _, vjp = run(inputs)
    if shape == "masked":
        assert not y[options["mask"] == 0].any()
        assert y[options["mask"] == 1].all()
    check_gradients(loss, inputs, vjp(d_y, *d_state), rng)


def renamed(arrays, prefix):
    """Arrays below ``prefix`` under our names; taps (D, 1, W) become (D, W), theta (1, 1, D) becomes (D,)."""
    ours = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            module, _, kind = name[len(prefix) :].partition(".")
            array = array.ravel() if module.startswith("theta") else array[:, 0] if array.ndim == 3 else array
            module = HGRN_NAMES.get(module, module)
            ours[f"{module}.{kind}" if kind else module] = array
    return ours


@pytest.mark.parametrize("name", HGRN1)
def test_hgrn_fla_golden(name):
    a, config = golden.load(f"hgrn1_{name}"), {"norm_eps": 1e-5}
    if "conv_state.i" in a:
        config |= {"conv_size": 4}
    state = (a["h0"], np.zeros((2, 0, 128))) if "h0" in a else None
    y, (h, conv), vjp = oracle_layers.hgrn(
        renamed(a, "w."), a["x"], state, bound=a.get("lower_bound"), mask=a.get("attention_mask"), **config
    )
    grads = vjp(a["do"], a["dht"], np.zeros_like(conv))
    kept = a.get("attention_mask", np.ones(y.shape[:2])) == 1  # fla masks the inputs and not the outputs
    assert_same("y", y[kept], a["o"][kept], SAME_AS_GOLDEN)
    assert_same("h", h, a["ht"], SAME_AS_GOLDEN)
    if "conv_state.i" in a:
        last = np.concatenate([a[f"conv_state.{c}"][:, :, 1:].swapaxes(1, 2) for c in ("i", "f")], -1)
        assert_same("conv", conv, last, SAME_AS_GOLDEN)
    expected = renamed(a, "grad.w.") | {"x": a["grad.x"]}
    expected |= {ours: a[key] for key, ours in (("grad.h0", "h"), ("grad.lower_bound", "bound")) if key in a}
    assert set(renamed(a, "w.")) <= set(expected)
    for key, value in expected.items():
        assert_same(f"d {key}", grads[key], value, SAME_AS_GOLDEN)


@pytest.mark.parametrize("name", OFFICIAL)
def test_hgrn_official_golden(name):
    a, config = golden.load(name), OFFICIAL[name] | {"norm": "layer", "bias": True}
    batch_first = lambda t: np.moveaxis(t, -2, 0)  # noqa: E731
    y, _, vjp = oracle_layers.hgrn(renamed(a, "w."), batch_first(a["x"]), bound=a["lower_bound"], **config)
    grads = vjp(batch_first(a["do"]))
    expected = renamed(a, "grad.w.") | {"x": batch_first(a["grad.x"]), "bound": a["grad.lower_bound"]}
    assert_same("y", y, batch_first(a["o"]), SAME_AS_GOLDEN)
    assert set(renamed(a, "w.")) <= set(expected)
    for key, value in expected.items():
        assert_same(f"d {key}", grads[key], value, SAME_AS_GOLDEN)


# Hyena


@pytest.mark.parametrize("name", HYENA)
def test_hyena_golden(name):
    a = golden.load(f"hyena_{name}")
    w = {key[len("w.") :]: array for key, array in a.items() if key.startswith("w.")}
    ctor = json.loads(str(a["_meta"]))["ctor"]
    stages, layout = ctor.get("order", 2) - 1, "channel" if name.startswith("safari_full") else "stage"
    f = "filter_fn.implicit_filter"
    layers = [(w[f"{f}.{i}.weight"], w.get(f"{f}.{i}.bias")) for i in (0, 2, 4, 6)]
    rates = w["filter_fn.modulation.deltas"].ravel() if ctor.get("modulate", True) else None
    z, t = w["filter_fn.pos_emb.z"][0], w["filter_fn.pos_emb.t"].ravel()
    window = {"t": t, "shift": ctor.get("shift", 0.0), "normalize": ctor.get("normalized", False)}
    flat = oracle_layers.hyena_filters(layers, w[f"{f}.1.freq"], z, rates, **window)
    # upstream computes its features in float32
    assert_same("z", z, oracle_layers.positional_features(len(z), ctor.get("emb_dim", 3)), 1e-6)
    assert_same("t", t, np.linspace(0, 1, len(z)), 1e-6)
    if rates is not None:
        assert_same("rates", rates, oracle_layers.decay_rates(len(rates)), 1e-6)
    T = a["in.u"].shape[1]
    assert_same("h_flat", flat[:T], a["mid.h_flat"], SAME_AS_GOLDEN)
    filters = oracle_layers.by_stage(flat, stages, layout).swapaxes(1, 2)
    assert_same("h", filters[..., :T], a["mid.h"], SAME_AS_GOLDEN)
    run = lambda u: oracle_layers.hyena_operator(  # noqa: E731
        u,
        (w["in_proj.weight"], w["in_proj.bias"]),
        (w["short_filter.weight"][:, 0], w["short_filter.bias"]),
        filters,
        oracle_layers.by_stage(w["filter_fn.bias"], stages, layout),
        (w["out_proj.weight"], w["out_proj.bias"]),
        activation=ctor.get("activation", "none"),
    )
    assert_same("y", oracle_layers.each_sequence(run, a["in.u"]), a["out.y"], SAME_AS_GOLDEN)


def test_gelu_by_hand():
    assert_same("gelu", oracle_layers.gelu(np.array([-1.0, 0.0, 2.0])), [-0.15865525393145707, 0, 1.9544997361036416])


# Attention


def test_rotary_by_hand():
    """Four channels are two pairs, (0, 2) and (1, 3): one turns by t, the other by t / 100."""
    x = np.array([3.0, 5.0, 4.0, 12.0]) * np.ones((3, 1, 4))
    turned = oracle_layers.rotary(x, 1e4)[2, 0]
    for pair, angle in (((0, 2), 2.0), ((1, 3), 0.02)):
        (a, b), c, s = x[0, 0, list(pair)], np.cos(angle), np.sin(angle)
        assert_same("pair", turned[list(pair)], [a * c - b * s, a * s + b * c])


def test_attention_by_hand():
    """One head of one channel pair, which turns by 1 a token whatever the base."""
    eye = np.eye(2)
    params = {"q_proj.weight": 0 * eye, "k_proj.weight": eye, "v_proj.weight": eye, "out_proj.weight": eye}
    params |= {"q_proj.bias": np.array([np.sqrt(2), 0.0])}
    x = np.array([[50.0, 1.0], [0.0, 4.0], [np.log(3), 8.0]])[None]
    y = oracle_layers.attention(params, x, num_heads=1, window_size=1)
    assert_same("a window of one token", y, x)
    y = oracle_layers.attention(params, x, num_heads=1, window_size=2)[0, 2]
    scores = np.array([0 * np.cos(1) + 4 * np.sin(1), np.log(3)])  # q_2 k_1, with k_1 one turn behind; q_2 k_2
    p = np.exp(scores) / np.exp(scores).sum()
    assert_same("a window of two", y, p @ x[0, 1:])


def test_attention_shares_heads_of_keys_between_neighbors(rng):
    """Four query heads on two of keys and values, which is the same as with each of these written twice."""
    D, K = 16, 4
    params = {f"{n}_proj.weight": rng.standard_normal((D if n == "q" else D // 2, D)) for n in "qkv"}
    params |= {"out_proj.weight": rng.standard_normal((D, D))}
    twice = params | {
        f"{n}_proj.weight": params[f"{n}_proj.weight"].reshape(2, K, D).repeat(2, 0).reshape(D, D) for n in "kv"
    }
    x = rng.standard_normal((1, 5, D))
    shared = oracle_layers.attention(params, x, num_heads=4, num_kv_heads=2, window_size=3)
    assert_same("y", shared, oracle_layers.attention(twice, x, num_heads=4, window_size=3))


def test_attention_does_not_see_where_it_starts(rng):
    """Rotary angles enter by their differences, so pads before a sequence change nothing."""
    params = {f"{n}_proj.weight": rng.standard_normal((8, 8)) for n in ("q", "k", "v", "out")}
    x = rng.standard_normal((1, 6, 8))
    whole = oracle_layers.attention(params, x, num_heads=2, window_size=3)
    late = oracle_layers.attention(params, x[:, 2:], num_heads=2, window_size=3)
    assert_same("y", late[:, 2:], whole[:, 4:])


def test_silu_is_the_other_oracles(rng):
    x = rng.standard_normal(5)
    assert_same("silu", oracle_layers.OUTPUT_ACTIVATIONS["silu"](x), oracle.silu(x)[0])

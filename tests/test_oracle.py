"""The oracle itself: every hand-derived gradient against finite differences, every formula against foreign numbers."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from tests import cases, golden, oracle
from tests.numerics import SAME_AS_FINITE_DIFFERENCES, SAME_AS_GOLDEN, assert_close_each, assert_same

STEP = 2.5e-4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def check_gradients(loss, inputs, grads, rng):
    """d loss along random directions of every input alone, against central differences of sixth order."""
    assert set(grads) == set(inputs), set(grads) ^ set(inputs)
    for name, x in inputs.items():
        assert grads[name].shape == x.shape, name
        for _ in range(2 if x.size else 0):
            direction = rng.standard_normal(x.shape)
            direction /= np.linalg.norm(direction)
            difference = {
                h: loss(inputs | {name: x + h * STEP * direction}) - loss(inputs | {name: x - h * STEP * direction})
                for h in (1, 2, 3)
            }
            numeric = (45 * difference[1] - 9 * difference[2] + difference[3]) / (60 * STEP)
            assert_same(name, (grads[name] * direction).sum(), numeric, SAME_AS_FINITE_DIFFERENCES)


@pytest.mark.parametrize("activation", ["none", "silu", "sigmoid"])
def test_activations(activation, rng):
    act, x, d = oracle.ACTIVATIONS[activation], rng.standard_normal((3, 4)) * 3, rng.standard_normal((3, 4))
    check_gradients(lambda i: (d * act(i["x"])[0]).sum(), {"x": x}, {"x": act(x)[1](d)}, rng)


def test_activations_saturate_without_overflow():
    x = np.array([-1e4, -800.0, -40.0, 0.0, 40.0, 1e4])
    with np.errstate(all="raise", under="ignore"):
        y, vjp = oracle.sigmoid(x)
        assert_close_each("sigmoid", y, [0, 0, np.exp(-40.0), 0.5, 1, 1], 1e-15)
        assert_close_each("slope", vjp(np.ones(6)), [0, 0, np.exp(-40.0), 0.25, np.exp(-40.0), 0], 1e-15)
        assert_close_each("silu", oracle.silu(x)[0], [0, 0, -40 * np.exp(-40.0), 0, 40, 1e4], 1e-15)


@pytest.mark.parametrize("bias", [True, False])
def test_linear(bias, rng):
    inputs = {"x": rng.standard_normal((2, 3, 4)), "weight": rng.standard_normal((5, 4))}
    inputs |= {"bias": rng.standard_normal(5)} if bias else {}
    d = rng.standard_normal((2, 3, 5))
    y, vjp = oracle.linear(**inputs)
    assert_same("y", y[1, 2, 3], inputs["weight"][3] @ inputs["x"][1, 2] + (inputs["bias"][3] if bias else 0))
    grads = vjp(d)
    check_gradients(lambda i: (d * oracle.linear(**i)[0]).sum(), inputs, {n: grads[n] for n in inputs}, rng)


@pytest.mark.parametrize("kind", ["rms", "rms_no_weight", "layer"])
@pytest.mark.parametrize("eps", [1e-5, 0.7])
def test_norm(kind, eps, rng):
    inputs = {"x": rng.standard_normal((2, 3, 6)) + 0.5}
    inputs |= {"weight": rng.standard_normal(6)} if kind != "rms_no_weight" else {}
    inputs |= {"bias": rng.standard_normal(6)} if kind == "layer" else {}
    d = rng.standard_normal((2, 3, 6))
    y, vjp = oracle.norm(kind=kind, eps=eps, **inputs)
    row = inputs["x"][1, 2]
    if kind == "layer":
        assert_same("y", y[1, 2], (row - row.mean()) / np.sqrt(row.var() + eps) * inputs["weight"] + inputs["bias"])
    else:
        assert_same("y", y[1, 2], row / np.sqrt((row @ row) / 6 + eps) * inputs.get("weight", 1))
    grads = vjp(d)
    loss = lambda i: (d * oracle.norm(kind=kind, eps=eps, **i)[0]).sum()  # noqa: E731
    check_gradients(loss, inputs, {n: grads[n] for n in inputs}, rng)


def test_swiglu(rng):
    shapes = {"x": (2, 3, 4), "gate_proj.weight": (7, 4), "up_proj.weight": (7, 4), "down_proj.weight": (4, 7)}
    inputs, d = {n: rng.standard_normal(s) for n, s in shapes.items()}, rng.standard_normal((2, 3, 4))
    check_gradients(
        lambda i: (d * oracle.swiglu(i, i["x"])[0]).sum(), inputs, oracle.swiglu(inputs, inputs["x"])[1](d), rng
    )


def test_lower_bounds_by_hand():
    p = np.array([0.1, 0.2, 0.3, 0.4])
    gamma = np.log(p)[:, None] + 7.0
    for kind, expected in (("inclusive", [0, 0.2, 0.5, 0.9]), ("exclusive", [0, 0.1, 0.3, 0.6])):
        bound, complement, _ = oracle.lower_bounds(gamma, kind)
        assert_same(kind, bound[:, 0], expected)
        assert_same(kind, complement[:, 0], 1 - np.array(expected))


@pytest.mark.parametrize("kind", oracle.LOWER_BOUND_KINDS)
def test_lower_bounds(kind, rng):
    gamma, d = rng.standard_normal((5, 3)), rng.standard_normal((2, 5, 3))

    def loss(i):
        bound, complement, _ = oracle.lower_bounds(i["gamma"], kind)
        return (d[0] * bound + d[1] * complement).sum()

    check_gradients(loss, {"gamma": gamma}, {"gamma": oracle.lower_bounds(gamma, kind)[2](*d)}, rng)


@pytest.mark.parametrize("kind", oracle.LOWER_BOUND_KINDS)
def test_lower_bounds_golden(kind):
    a = golden.load("hgrn_lower_bounds")
    theirs = {"inclusive": "inclusive_minus_first", "exclusive": "exclusive"}[kind]
    bound, complement, vjp = oracle.lower_bounds(a["gamma"], kind)
    assert_same("bound", bound, a[f"lb_{theirs}"], SAME_AS_GOLDEN)
    assert_same("complement", complement, 1 - a[f"lb_{theirs}"], SAME_AS_GOLDEN)
    assert_same("gamma", vjp(a["dlb"], np.zeros_like(bound)), a[f"grad.gamma.{theirs}"], SAME_AS_GOLDEN)
    assert_same("gamma", vjp(np.zeros_like(bound), -a["dlb"]), a[f"grad.gamma.{theirs}"], SAME_AS_GOLDEN)


@pytest.mark.parametrize("bounded", [True, False])
def test_forget_gate(bounded, rng):
    inputs, d = {"z": 3 * rng.standard_normal((4, 5))}, rng.standard_normal((2, 4, 5))
    inputs |= {"bound": rng.uniform(0.01, 0.95, 5)} if bounded else {}

    def loss(i):
        log_forget, k, _ = oracle.forget_gate(i["z"], i.get("bound"))
        return (d[0] * log_forget + d[1] * k).sum()

    grads = oracle.forget_gate(inputs["z"], inputs.get("bound"))[2](*d)
    check_gradients(loss, inputs, {n: grads[n] for n in inputs}, rng)


@pytest.mark.parametrize("z", [-100.0, -37.5, -3.0, -1e-3, 0.0, 0.4, 9.0, 36.8, 100.0])
@pytest.mark.parametrize("bound", [0.0, 1e-30, 0.1, 0.5, 1 - 2**-40])
def test_forget_gate_has_all_its_digits(z, bound):
    """The definition, in decimal arithmetic with 200 digits: values and gradients hold at any saturation."""
    log_forget, k, vjp = oracle.forget_gate(np.array([z]), np.array([bound]))
    of_log, of_k = vjp(np.ones(1), np.zeros(1)), vjp(np.zeros(1), np.ones(1))
    with localcontext() as context:
        context.prec = 200
        s, lb = 1 / (1 + (-Decimal(z)).exp()), Decimal(bound)
        f = lb + (1 - lb) * s
        exact = {"log_forget": f.ln(), "k": 1 - f, "dk/dz": -(1 - lb) * s * (1 - s), "dk/dlb": -(1 - s)}
        exact |= {"dlogf/dz": (1 - lb) * s * (1 - s) / f, "dlogf/dlb": (1 - s) / f}
    got = {"log_forget": log_forget, "k": k, "dk/dz": of_k["z"], "dk/dlb": of_k["bound"]}
    got |= {"dlogf/dz": of_log["z"], "dlogf/dlb": of_log["bound"]}
    for name, value in got.items():
        # 16 roundings of float64; exp itself loses |z| / 2 of them
        assert_close_each(name, value, [float(exact[name])], 16 * np.finfo(float).eps, np.finfo(float).tiny)


def test_forget_gate_beyond_the_range_of_exp():
    z = np.array([-1e300, -1e4, 1e4, 1e300])
    log_forget, k, vjp = oracle.forget_gate(z)
    assert_close_each("log_forget", log_forget, [-1e300, -1e4, 0, 0], 1e-15)
    assert_close_each("k", k, [1, 1, 0, 0], 1e-15)
    assert_close_each("z", vjp(np.ones(4), np.ones(4))["z"], [1, 1, 0, 0], 1e-15)


def test_gla_by_hand():
    """Two tokens, K = 2, V = 1, in numbers one can follow: f (0.5, 0.25), S_0 = (8, 4)."""
    k = np.array([[1.0, 0.0], [2.0, 3.0]]).reshape(1, 2, 1, 2)
    v = np.array([10.0, 100.0]).reshape(1, 2, 1, 1)
    q = np.array([[1.0, 1.0], [1.0, -1.0]]).reshape(1, 2, 1, 2)
    log_forget = np.log([[0.5, 0.25], [1.0, 0.5]]).reshape(1, 2, 1, 2)
    out, final, _ = oracle.gla(q, k, v, log_forget, np.array([8.0, 4.0]).reshape(1, 1, 2, 1))
    # S_1 = (4 + 10, 1 + 0); o_1 = 15.  S_2 = (14 + 200, 0.5 + 300); o_2 = 214 - 300.5
    assert_same("out", out.ravel(), [15.0, -86.5])
    assert_same("final_state", final.ravel(), [214.0, 300.5])


@pytest.mark.parametrize("cu_seqlens", [None, [0, 0, 3, 4, 4, 7, 7]])
def test_gla(cu_seqlens, rng):
    B, states = (2, None) if cu_seqlens is None else (1, len(cu_seqlens) - 1)
    case = cases.gla_case(B, 7, 3, 2, 4, gates="fast", num_states=states)
    inputs, d_out, d_final = case.arrays(np.float64)

    def loss(i):
        out, final, _ = oracle.gla(**i, cu_seqlens=cu_seqlens)
        return (d_out * out).sum() + (d_final * final).sum()

    check_gradients(loss, inputs, oracle.gla(**inputs, cu_seqlens=cu_seqlens)[2](d_out, d_final), rng)


def test_short_conv_by_hand():
    x, weight = np.array([1.0, 2.0, 3.0]).reshape(1, 3, 1), np.array([[100.0, 10.0, 1.0]])
    out, final, _ = oracle.short_conv(x, weight, np.array([0.5]), np.array([8.0, 9.0]).reshape(1, 2, 1))
    assert_same("out", out.ravel(), [891.5, 912.5, 123.5])
    assert_same("final_state", final.ravel(), [2.0, 3.0])


@pytest.mark.parametrize("W", [1, 4])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("cu_seqlens", [None, [0, 0, 2, 3, 3, 9, 9]])
def test_short_conv(W, activation, cu_seqlens, rng):
    B, states = (2, None) if cu_seqlens is None else (1, len(cu_seqlens) - 1)
    inputs, d_out, d_final = cases.short_conv_case(B, 9, 3, W, num_states=states).arrays(np.float64)
    options = {"activation": activation, "cu_seqlens": cu_seqlens}

    def loss(i):
        out, final, _ = oracle.short_conv(**i, **options)
        return (d_out * out).sum() + (d_final * final).sum()

    check_gradients(loss, inputs, oracle.short_conv(**inputs, **options)[2](d_out, d_final), rng)


@pytest.mark.parametrize("name", cases.HGRN2_CONFIGS)
@pytest.mark.parametrize("shape", ["plain", "masked", "packed"])
def test_hgrn2(name, shape, rng):
    config, D, T = cases.HGRN2_CONFIGS[name], 12, 8
    B, options = 2, {}
    if shape == "masked":
        options = {"mask": np.array([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0, 0]])}
    if shape == "packed":
        B, options = 1, {"cu_seqlens": [0, 3, 3, 4, 8]}
    N = B if shape != "packed" else 4
    state = cases.hgrn2_state(N, D, config, rng)
    inputs = cases.hgrn2_params(D, config, rng)
    inputs |= {"x": rng.standard_normal((B, T, D)), "S": state[0], "conv": state[1], "bound": rng.uniform(0.1, 0.8, D)}
    d_y, (d_S, d_conv) = rng.standard_normal((B, T, D)), (rng.standard_normal(a.shape) for a in state)

    def run(i):
        return oracle.hgrn2(i, i["x"], (i["S"], i["conv"]), bound=i["bound"], **options, **config)

    def loss(i):
        y, (S, conv), _ = run(i)
        return (d_y * y).sum() + (d_S * S).sum() + (d_conv * conv).sum()

    y, _, vjp = run(inputs)
    if shape == "masked":
        assert not y[options["mask"] == 0].any()
        assert y[options["mask"] == 1].all()
    check_gradients(loss, inputs, vjp(d_y, d_S, d_conv), rng)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("lower_bound", ["inclusive", "exclusive", None])
def test_language_model(tied, lower_bound, rng):
    mixer, vocab, D, layers = {"expand_ratio": 2, "conv_size": 3, "query_scale": 0.7, "norm_eps": 0.1}, 7, 6, 3
    config = {"num_layers": layers, "mixer": mixer, "lower_bound": lower_bound}
    params = cases.language_model_params(vocab, D, 10, layers, mixer, rng, tied=tied, lower_bound=lower_bound)
    ids = rng.integers(0, vocab, (2, 5))
    logits, hidden, states, vjp = oracle.language_model(params, ids, **config)
    assert logits.shape == (2, 5, vocab)
    assert len(hidden) == layers + 1
    d_states = [tuple(rng.standard_normal(a.shape) for a in state) for state in states]

    def loss(params):
        logits, _, states, _ = oracle.language_model(params, ids, **config)
        of_states = sum(
            (d * a).sum() for ds, s in zip(d_states, states, strict=True) for d, a in zip(ds, s, strict=True)
        )
        return oracle.next_token_loss(logits, ids)[0] + of_states

    grads = vjp(oracle.next_token_loss(logits, ids)[1](), d_states)
    del grads["states"]
    check_gradients(loss, params, grads, rng)


@pytest.mark.parametrize("name", golden.LAYERS)
def test_hgrn2_golden(name):
    case = golden.layer_case(name)
    state = None
    if case.S_in is not None:
        state = case.S_in, np.zeros((case.num_sequences, 0, 3 * case.hidden_size))
    y, (S, conv), vjp = oracle.hgrn2(
        case.params, case.x, state, bound=case.bound, mask=case.mask, cu_seqlens=case.cu_seqlens, **case.config
    )
    grads = vjp(case.d_y, np.zeros_like(S) if case.d_S is None else case.d_S, np.zeros_like(conv))
    assert_same("y", y, case.y, SAME_AS_GOLDEN)
    if case.S_out is not None:
        assert_same("S", S, case.S_out, SAME_AS_GOLDEN)
    if case.conv_out is not None:
        assert_same("conv", conv, case.conv_out, SAME_AS_GOLDEN)
    assert set(case.params) <= set(case.grads)
    for key, expected in case.grads.items():
        assert_same(f"d {key}", grads[key], expected, SAME_AS_GOLDEN)


@pytest.mark.parametrize("name", golden.LANGUAGE_MODELS)
def test_language_model_golden(name):
    case = golden.language_model_case(name)
    config = {"num_layers": case.num_layers, "mixer": case.mixer}
    logits, hidden, states, vjp = oracle.language_model(case.params, case.ids, **config)
    loss, loss_vjp = oracle.next_token_loss(logits, case.ids)
    assert_same("logits", logits, case.logits, SAME_AS_GOLDEN)
    assert_same("loss", loss, case.loss, SAME_AS_GOLDEN)
    for n, expected in enumerate(case.hidden):
        assert_same(f"hidden.{n}", hidden[n], expected, SAME_AS_GOLDEN)
    for n, expected in enumerate(case.states):
        assert_same(f"state.{n}", states[n][0], expected, SAME_AS_GOLDEN)
    grads = vjp(loss_vjp())
    del grads["states"]
    assert set(grads) == set(case.grads)
    for key, expected in case.grads.items():
        assert_same(f"d {key}", grads[key], expected, SAME_AS_GOLDEN)
    masked = oracle.language_model(case.params, case.ids, **config, mask=case.mask)[0] * case.mask[..., None]
    assert_same("left-padded logits", masked, case.logits_leftpad, SAME_AS_GOLDEN)

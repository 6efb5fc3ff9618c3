"""Instructions of the native step against float64 in torch, in every instruction set."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.stream.machine import KERNELS, Machine, add_linear, bits, needs_native

pytestmark = needs_native


@pytest.fixture(params=["base", "avx2", "avx512"])
def isa(request):
    before = KERNELS.isa()
    try:
        KERNELS.use_isa(request.param)
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield request.param
    KERNELS.use_isa(before)


def close(name: str, got: Tensor, exact: Tensor, ulps: float = 16) -> None:
    """Within some units in the last place of the largest number."""
    assert got.shape == exact.shape
    error = float((got.double() - exact).abs().max() / exact.abs().max())
    assert error <= ulps * torch.finfo(torch.float32).eps, f"{name}: {error:.1e}"


@pytest.mark.parametrize("kind", range(3), ids=["float32", "bfloat16", "int8"])
@pytest.mark.parametrize(("n_in", "n_out"), [(5, 7), (33, 70), (64, 256), (17, 130)])
def test_linear(isa, kind, n_in, n_out):
    w, bias, more = torch.randn(n_out, n_in), torch.randn(n_out), torch.randn(n_out, n_in)
    x, alone = torch.randn(37, n_in), None
    for B in (37, 5, 3, 1):
        m = Machine(n_in, n_out, out=n_in)
        m.scratch(n_out)
        first = add_linear(m, w, bias, kind, n_in)
        second = add_linear(m, more, None, kind, n_in, add=1)
        m.start(B, threads=1 + B % 3)
        y = m.run(x[:B, None])[:, 0]
        close("y", y, x[:B].double() @ (first + second).t() + bias.double())
        alone = y if alone is None else alone
        assert torch.equal(y, alone[:B])  # a row's numbers do not depend on the batch


@pytest.mark.parametrize("n", [1, 20, 64, 300])
def test_norms_and_activations(isa, n):
    x, weight, bias = torch.randn(3, 2, 2 * n), torch.randn(n), torch.randn(n)
    x[0, 0, :n] = 0.5 + 1e-4 * torch.randn(n)  # almost constant
    a, b = x.double()[..., :n], x.double()[..., n:]

    def norm(kind: int, weight: Tensor | None, bias: Tensor | None, gate: int) -> Tensor:
        m = Machine(2 * n, n, out=2 * n)
        m.scratch(n)
        places = {"weight": m.constant(weight), "bias": m.constant(bias), "gate": gate}
        m.add("norm", **{"in": 0}, out=2 * n, n=n, kind=kind, eps=bits(1e-5), **places)
        return m.start(3).run(x)

    wide, more = weight.double(), bias.double()
    close("rms", norm(0, weight, None, n), F.rms_norm(a, (n,), wide, 1e-5) * F.silu(b))
    close("layer", norm(1, weight, bias, -1), F.layer_norm(a, (n,), wide, more, 1e-5), 64)
    d = a - a.mean(-1, keepdim=True)
    v = d.square().mean(-1, keepdim=True)
    close("axon", norm(2, None, bias, -1), d * torch.where(v >= 1e-5, v + 1e-5, 1e-5).rsqrt() + more, 64)

    functions = [lambda z: z, F.silu, torch.sigmoid, lambda z: F.gelu(z, approximate="tanh"), F.gelu]
    for kind, function in enumerate(functions):
        for other, exact in ((-1, function(4 * a)), (n, function(4 * a) * b)):
            m = Machine(2 * n, n)
            four = m.constant(torch.full((n,), 4.0))
            m.add("affine", **{"in": 0}, out=0, n=n, weight=four, bias=-1)
            m.add("multiply", a=0, activation=kind, b=other, out=0, n=n)
            close(f"activation {kind}", m.start(3).run(x), exact)
    m = Machine(2 * n, n)
    m.add("affine", **{"in": 0}, out=0, n=n, weight=m.constant(weight), bias=m.constant(bias))
    close("affine", m.start(3).run(x), a * wide + more)


@pytest.mark.parametrize("kind", [3, 4], ids=["gelu_tanh", "gelu"])
def test_gelu_far_from_zero(isa, kind):
    x = torch.linspace(-12, 12, 4001)
    m = Machine(1, 1)
    m.add("multiply", a=0, activation=kind, b=-1, out=0, n=1)
    y = m.start(len(x)).run(x[:, None, None]).flatten()
    exact = F.gelu(x.double(), approximate="tanh" if kind == 3 else "none")
    assert ((y - exact).abs() <= 3e-7 * x.abs()).all()
    assert not y.isnan().any()


def lower_bound(n: int) -> tuple[Tensor, Tensor]:
    complement = torch.rand(n) * torch.tensor([1.0, 1e-4])[torch.arange(n) % 2]  # gates of all speeds
    return (1 - complement.double()).float(), complement


def gate(z: Tensor, bound: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    if bound is None:
        return z.sigmoid(), (-z).sigmoid()
    complement = bound[1].double()
    return 1 - complement * (-z).sigmoid(), complement * (-z).sigmoid()  # in double, and of bound + complement = 1


@pytest.mark.parametrize("turns", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("bounded", [False, True], ids=["", "bounded"])
@pytest.mark.parametrize("n", [3, 50, 1100])
def test_hgrn(isa, n, bounded, turns):
    parts, bound = 1 + turns, lower_bound(n) if bounded else None
    theta = torch.rand(n, dtype=torch.float64) * 3
    exact = torch.stack([theta.cos(), theta.sin()])
    turn = torch.cat([exact.float(), (exact - exact.float()).float()]) if turns else None
    m = Machine((parts + 1) * n, parts * n, out=(parts + 1) * n)
    out, state = m.scratch(parts * n), m.state(parts * n)
    places = {"bound": m.constant(bound[0]), "complement": m.constant(bound[1])} if bound else {}
    places = {"bound": -1, "complement": -1, **places, "theta": m.constant(turn), "state": state}
    m.add("hgrn", c=0, z=parts * n, out=out, n=n, **places)
    x = 3 * torch.randn(2, 40, (parts + 1) * n)
    y = m.start(2, threads=2).run(x)
    c, z = x.double().split([parts * n, n], -1)
    forget, leave = gate(z, bound)
    u = F.silu(c)
    u, factor = torch.view_as_complex(u.unflatten(-1, (n, 2))) if turns else u, 1.0
    if turns:
        factor = torch.complex(*exact)
    h, results = torch.zeros_like(u[:, 0]), []
    for t in range(x.shape[1]):
        h = forget[:, t] * factor * h + leave[:, t] * u[:, t]
        results.append(torch.cat([h.real, h.imag], -1) if turns else h)
    close("y", y, torch.stack(results, 1))
    close("state", m.present, results[-1])


@pytest.mark.parametrize("op", ["hgrn", "turning hgrn", "gla"])
def test_slow_gates_keep_their_digits(isa, op):
    """Of 1 - f = 1e-5, float32's f has two digits. A loop with them is much further off after 2,000 steps."""
    n, T, turns = 16, 2000, op == "turning hgrn"
    z, u = torch.randn(T, n), torch.randn(T, n)
    complement = 2e-5 * (1 + torch.rand(n))
    exact = torch.tensor([[math.cos(1.0)], [math.sin(1.0)]], dtype=torch.float64).expand(2, n)
    theta = torch.cat([exact.float(), (exact - exact.float()).float()]) if turns else None
    m = Machine(5 * n, 2 * n, out=5 * n)
    bound = {"bound": m.constant(1 - complement), "complement": m.constant(complement)}
    out, state = m.scratch(2 * n), m.state(n * n)
    if op == "gla":
        sizes = {"heads": 1, "size": n, "act_q": 0, "scale": bits(1.0), "act_v": 0}
        m.add("gla", q=0, z=n, v=2 * n, out=out, state=state, **sizes, **bound)
        frames = torch.cat([u, z, u, u, u], 1)
    else:
        m.add("hgrn", c=0, z=2 * n, out=out, n=n, theta=m.constant(theta), state=state, **bound)
        frames = torch.cat([u.repeat_interleave(2, 1) if turns else u.repeat(1, 2), z, u, u], 1)
    m.start(1)
    m.states[0] = 1
    m.memory.zero_()
    y = torch.empty(1, 2 * n)
    for frame in frames:
        assert KERNELS.stream_step(*m.arguments(frame[None].contiguous(), y)) == 0

    def loop(dtype: torch.dtype) -> Tensor:
        leave = complement.to(dtype) * (-z.to(dtype)).sigmoid()
        keep = 1 - leave if dtype == torch.float64 else (1 - complement) + complement * z.sigmoid()
        value = (u if op == "gla" else F.silu(u.double())).to(dtype)
        if op == "gla":
            S = torch.ones(n, n, dtype=dtype)
            for t in range(T):
                S = keep[t][:, None] * S + leave[t][:, None] * value[t]
            return S.flatten()
        cos, sin = exact.to(dtype) if turns else (1.0, 0.0)
        re, im = torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)
        for t in range(T):
            re, im = cos * re - sin * im, sin * re + cos * im
            re, im = keep[t] * re + leave[t] * value[t], keep[t] * im + leave[t] * value[t]
        return torch.cat([re, im]) if turns else re

    expected = loop(torch.float64)
    got, plain = m.present[0, : len(expected)], loop(torch.float32)
    error, loop_error = ((x.double() - expected).norm() for x in (got, plain))
    assert error <= 0.4 * loop_error


@pytest.mark.parametrize(("heads", "size"), [(1, 3), (3, 20), (2, 64), (1, 130)])
@pytest.mark.parametrize("bounded", [False, True], ids=["", "bounded"])
def test_gla(isa, heads, size, bounded):
    n, bound = heads * size, lower_bound(heads * size) if bounded else None
    m = Machine(3 * n, n, out=3 * n)
    places = {"bound": m.constant(bound[0]), "complement": m.constant(bound[1])} if bound else {}
    places = {"bound": -1, "complement": -1, **places, "state": m.state(n * size), "scale": bits(size**-0.5)}
    m.add("gla", q=0, z=n, v=2 * n, out=m.scratch(n), heads=heads, size=size, act_q=1, act_v=2, **places)
    x = 2 * torch.randn(3, 12, 3 * n)
    y = m.start(3, threads=2).run(x)
    q, z, v = (part.unflatten(-1, (heads, size)) for part in x.double().chunk(3, -1))
    forget, leave = (part.unflatten(-1, (heads, size)) for part in gate(z.flatten(-2), bound))
    S, exact = torch.zeros(3, heads, size, size, dtype=torch.float64), []
    for t in range(x.shape[1]):
        S = forget[:, t, ..., None] * S + leave[:, t, ..., None] * v[:, t, :, None].sigmoid()
        exact.append(torch.einsum("bhk,bhkv->bhv", F.silu(q[:, t]) * size**-0.5, S).flatten(1))
    close("y", y, torch.stack(exact, 1))
    close("state", m.present, S.flatten(1))


@pytest.mark.parametrize(("gates", "neighbors"), [(1, 5), (7, 3), (4, 32), (40, 1)])
def test_shared_gates(isa, gates, neighbors):
    n = gates * neighbors
    m = Machine(2 * gates + n, n, out=2 * gates + n)
    m.add("shared_gates", f=0, i=gates, v=2 * gates, out=m.scratch(n), n=n, gates=gates, state=m.state(n))
    x = 3 * torch.randn(3, 30, 2 * gates + n)
    y = m.start(3, threads=3).run(x)
    f, i, v = x.double().split([gates, gates, n], -1)
    f, i = (part.sigmoid().repeat_interleave(neighbors, -1) for part in (f, i))
    h, exact = torch.zeros(3, n, dtype=torch.float64), []
    for t in range(x.shape[1]):
        h = f[:, t] * h + i[:, t] * F.silu(v[:, t])
        exact.append(h)
    close("y", y, torch.stack(exact, 1))


@pytest.mark.parametrize(("n", "taps", "has_bias"), [(1, 1, True), (20, 4, False), (70, 2, True), (2100, 3, True)])
def test_short_conv(isa, n, taps, has_bias):
    weight, bias = torch.randn(taps, n), torch.randn(n) if has_bias else None
    m = Machine(n, n, out=n)
    places = {"weight": m.constant(weight), "bias": m.constant(bias), "state": m.state((taps - 1) * n)}
    m.add("short_conv", **{"in": 0}, out=m.scratch(n), n=n, taps=taps, **places)
    x = torch.randn(2, 9, n)
    y = m.start(2, threads=2).run(x)
    padded = F.pad(x.double().transpose(1, 2), (taps - 1, 0))
    wide = None if bias is None else bias.double()
    close("y", y, F.conv1d(padded, weight.double().t()[:, None], wide, groups=n).transpose(1, 2))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "window"), [(1, 1, 3, 1), (2, 1, 5, 4), (4, 2, 16, 9), (3, 3, 20, 70)]
)
@pytest.mark.parametrize("turned", [False, True], ids=["", "turned"])
def test_attention(isa, heads, kv_heads, size, window, turned):
    size += turned and size % 2
    n, of_keys, half = heads * size, kv_heads * size, size // 2
    angles = torch.arange(window, dtype=torch.float64)[:, None] * 10.0 ** -torch.arange(half, dtype=torch.float64)
    turns = torch.stack([angles.cos(), angles.sin()], 1).float()
    m = Machine(n + 2 * of_keys, n, out=n + 2 * of_keys)
    places = {"turns": m.constant(turns if turned else None), "state": m.state(2 * (window - 1) * of_keys)}
    sizes = {"heads": heads, "kv_heads": kv_heads, "size": size, "window": window}
    m.add("attention", q=0, k=n, v=n + of_keys, out=m.scratch(n), **sizes, **places)
    x = 2 * torch.randn(2, 3 * window + 2, n + 2 * of_keys)
    y = m.start(2, threads=2).run(x)
    q, k, v = x.double().split([n, of_keys, of_keys], -1)
    q = q.unflatten(-1, (heads, size))
    k, v = (part.unflatten(-1, (kv_heads, size)).repeat_interleave(heads // kv_heads, 2) for part in (k, v))
    exact = []
    for t in range(x.shape[1]):
        first = max(0, t - window + 1)
        keys = k[:, first : t + 1]
        query = q[:, t, None].expand_as(keys)
        if turned:
            turn = torch.complex(*turns.double()[: t - first + 1].flip(0).unbind(1))[:, None]  # (keys, 1, half)
            pairs = torch.complex(query[..., :half], query[..., half:]) * turn
            query = torch.cat([pairs.real, pairs.imag], -1)
        weights = ((query * keys).sum(-1) * size**-0.5).softmax(1)
        exact.append((weights[..., None] * v[:, first : t + 1]).sum(1).flatten(1))
    close("y", y, torch.stack(exact, 1), 32)


def test_normalize_and_pool(isa):
    n, mean, std = 37, torch.randn(37), torch.rand(37) + 0.1
    index = torch.tensor([36, 0, 5])
    m = Machine(n, n + 3, out=n, allow_nan=torch.ones(n, dtype=torch.bool))
    places = {"mean": m.constant(mean), "std": m.constant(std), "index": m.constant(index)}
    m.add("normalize", **{"in": 0}, out=m.scratch(n + 3), n=n, indicators=3, **places)
    x = torch.randn(4, 1, n)
    x[torch.rand(4, 1, n) < 0.3] = math.nan
    y = m.start(4).run(x)
    close("y", y[..., :n], ((x.double() - mean.double()) / std.double()).nan_to_num(nan=0.0))
    assert torch.equal(y[..., n:], (~x.isnan()).float()[..., index])
    for kind in (0, 1):
        m = Machine(n, n)
        m.add("pool", **{"in": 0}, out=0, n=n, kind=kind, state=m.state(n))
        x = torch.randn(2, 9, n)
        count = torch.arange(1, 10, dtype=torch.float64)[:, None]
        close("pool", m.start(2).run(x), x.double() if kind else x.double().cumsum(1) / count)

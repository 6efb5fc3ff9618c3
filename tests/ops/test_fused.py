"""The fused elementwise kernels: against plain torch in float64, on every instruction set, and as torch ops."""

import pytest
import torch

from longstream.layers import HGRN, HGRN2, RMSNorm, SwiGLU
from longstream.ops import LowerBound, _native, available_backends, forget_gate
from longstream.ops.gates import gate_input
from longstream.ops.rms_norm import rms_norm
from longstream.ops.swiglu import swiglu

pytestmark = pytest.mark.skipif(
    available_backends("forget_gate")["native"] is not None, reason=str(available_backends("forget_gate")["native"])
)


def instruction_sets():
    """Those of this processor."""
    if available_backends("forget_gate")["native"] is not None:
        return ["none"]
    best = torch.ops.longstream.isa()
    return ["base", "avx2", "avx512"][: ["base", "avx2", "avx512"].index(best) + 1]


@pytest.fixture(params=instruction_sets())
def isa(request):
    best = torch.ops.longstream.isa()
    torch.ops.longstream.use_isa(request.param)
    yield request.param
    torch.ops.longstream.use_isa(best)


def run(function, inputs, cotangents, dtype, backend):
    """Values and gradients of all inputs of ``function(*inputs, backend=...)``, in one dtype."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    values = function(*leaves, backend=backend)
    values = values if isinstance(values, tuple) else (values,)
    cotangents = [d.to(dtype) for d in cotangents]
    return *(v.detach() for v in values), *torch.autograd.grad(values, leaves, cotangents)


def check(function, inputs, cotangents):
    """Native values and gradients against plain torch: no worse in float32, the same in float64, on float32 numbers."""
    inputs, cotangents = ([x.float().double() for x in xs] for xs in (inputs, cotangents))
    exact = run(function, inputs, cotangents, torch.float64, "torch")
    plain = run(function, inputs, cotangents, torch.float32, "torch")
    for n, (got, loop, want) in enumerate(
        zip(run(function, inputs, cotangents, torch.float32, "native"), plain, exact, strict=True)
    ):
        assert got.dtype == torch.float32
        err, plain_err = (float((x.double() - want).abs().max()) if x.numel() else 0.0 for x in (got, loop))
        # No worse than twice the plain form's, which for a single number may happen to be none: four roundings of the
        # largest number, of the result's or of the cotangents, whose multiples a gradient may be a difference of.
        floor = (
            4
            * torch.finfo(torch.float32).eps
            * max((float(x.abs().max()) for x in (want, *cotangents) if x.numel()), default=0.0)
        )
        assert err <= 2 * plain_err + floor, f"value {n}: {err:.1e} > 2 * {plain_err:.1e} + {floor:.1e}"
    for got, want in zip(run(function, inputs, cotangents, torch.float64, "native"), exact, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def bounded_gate(z, bound, *, backend):
    return forget_gate(z, LowerBound(bound, 1 - bound), backend=backend)


def bounded_input(z, candidate, bound, *, backend):
    return gate_input(candidate, z, LowerBound(bound, 1 - bound), backend=backend)


def free_input(z, candidate, *, backend):
    return gate_input(candidate, z, backend=backend)


def norm(x, weight, *, backend):
    return rms_norm(x, weight, 1e-5, backend=backend)


def norm_without_weight(x, *, backend):
    return rms_norm(x, None, 1e-5, backend=backend)


def norm_and_gate(x, gate, weight, *, backend):
    return rms_norm(x, weight, 1e-5, gate, backend=backend)


FUNCTIONS = {
    "forget_gate": (forget_gate, 1, False, 2),  # inputs of the shape of x, whether there is one of (D,), outputs
    "bounded forget_gate": (bounded_gate, 1, True, 2),
    "gate_input": (free_input, 2, False, 2),
    "bounded gate_input": (bounded_input, 2, True, 2),
    "rms_norm": (norm, 1, True, 1),
    "rms_norm without weight": (norm_without_weight, 1, False, 1),
    "rms_norm and gate": (norm_and_gate, 2, True, 1),
    "swiglu": (swiglu, 2, False, 1),
}


def make(name, shape):
    """A function of the table, inputs and cotangents; values at which gates open and close."""
    function, number, has_channels, outputs = FUNCTIONS[name]
    inputs = [3 * torch.randn(*shape, dtype=torch.float64) for _ in range(number)]
    if has_channels:
        inputs.append(0.05 + 0.9 * torch.rand(shape[-1], dtype=torch.float64))
    return function, inputs, [torch.randn(*shape, dtype=torch.float64) for _ in range(outputs)]


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5,), (2, 63, 5), (1, 65, 33), (3, 257, 16), (1, 1001, 40), (2, 70, 513)])
def test_against_plain_torch(isa, name, shape):
    check(*make(name, shape))


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing(name, shape):
    function, inputs, cotangents = make(name, shape)
    for got, want in zip(
        run(function, inputs, cotangents, torch.float32, "native"),
        run(function, inputs, cotangents, torch.float32, "torch"),
        strict=True,
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_threads_do_not_change_a_bit(isa, name):
    function, inputs, cotangents = make(name, (3, 1001, 96))
    once = run(function, inputs, cotangents, torch.float32, "native")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    again = run(function, inputs, cotangents, torch.float32, "native")
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_strides_and_alignment_do_not_matter(name):
    function, inputs, cotangents = make(name, (2, 30, 24))
    want = run(function, inputs, cotangents, torch.float32, "native")
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) if x.dim() == 3 else x for x in inputs]
    off = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in cotangents]
    got = run(function, turned, off, torch.float32, "native")
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_half_precision_goes_in(name, dtype):
    function, inputs, _ = make(name, (2, 9, 12))
    got, want = (function(*(x.to(dtype) for x in inputs), backend=backend) for backend in ("native", "torch"))
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_second_derivatives_are_refused_in_words(name):
    function, inputs, _ = make(name, (2, 4))
    leaves = [x.requires_grad_() for x in inputs]
    values = function(*leaves, backend="native")
    total = torch.stack([v.square().sum() for v in (values if isinstance(values, tuple) else (values,))]).sum()
    first = torch.autograd.grad(total, leaves, create_graph=True)
    again = torch.stack([gradient.square().sum() for gradient in first]).sum()
    with pytest.raises(RuntimeError, match=r": backend 'native' has first derivatives only; use backend='torch'"):
        torch.autograd.grad(again, leaves)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_under_compile(name):
    function, inputs, cotangents = make(name, (2, 9, 12))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    got = run(compiled, inputs, cotangents, torch.float32, "native")
    assert all(map(torch.equal, got, run(function, inputs, cotangents, torch.float32, "native")))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_auto_leaves_the_transforms_of_torch_func_to_torch(name):
    function, inputs, _ = make(name, (3, 4, 5))

    def total(x):
        values = function(x, *inputs[1:], backend="auto")
        return torch.stack([v.sum() for v in (values if isinstance(values, tuple) else (values,))]).sum()

    leaf = inputs[0].clone().requires_grad_()
    (want,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(total)(inputs[0]), want)
    per_row = torch.func.vmap(torch.func.grad(total))(inputs[0]) if len(inputs) == 1 else want
    torch.testing.assert_close(per_row, want)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_modes_without_gradients(name):
    function, inputs, _ = make(name, (2, 4, 12))
    want = function(*inputs, backend="native")
    for mode in (torch.no_grad(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        with mode:
            got = function(*inputs, backend="native")
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
            assert torch.equal(a, b)


def op_calls():
    """Arguments for every op, with gradients where there are any."""
    torch.manual_seed(0)
    z, d, e, candidate = (torch.randn(2, 3, 5).requires_grad_() for _ in range(4))
    bound = torch.rand(5).requires_grad_()
    complement = (1 - bound.detach()).requires_grad_()
    ops = torch.ops.longstream
    return [
        (ops.forget_gate, (z, None, None, None)),
        (ops.forget_gate, (z, bound, complement, candidate)),
        (ops.forget_gate_backward, (d.detach(), e.detach(), z.detach(), None, None, candidate.detach())),
        (ops.forget_gate_backward, (d.detach(), e.detach(), z.detach(), bound.detach(), complement.detach(), None)),
        (ops.rms_norm, (z, None, None, 1e-5)),
        (ops.rms_norm, (z, bound, candidate, 1e-5)),
        (ops.rms_norm_backward, (d.detach(), z.detach(), bound.detach(), None, 1e-5)),
        (ops.rms_norm_backward, (d.detach(), z.detach(), None, candidate.detach(), 1e-5)),
        (ops.swiglu, (z, candidate)),
        (ops.swiglu_backward, (d.detach(), z.detach(), candidate.detach())),
    ]


@pytest.mark.parametrize("n", range(10))
def test_opcheck(n):
    op, arguments = op_calls()[n]
    torch.library.opcheck(op.default, arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("which", [0, -1])
def test_nan_stays_nan(isa, name, which):
    function, inputs, _ = make(name, (2, 20))
    inputs[which][..., 3] = torch.nan
    got, want = (function(*(x.float() for x in inputs), backend=backend) for backend in ("native", "torch"))
    found = 0
    for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        found += int(b.isnan().sum())
    assert found


def test_rows_longer_than_a_block_of_sums_keep_their_digits():
    """The gradient of a weight is a sum over 40 000 rows of one sign, which a float32 sum one by one would lose."""
    x, weight = torch.rand(40_000, 3) + 0.5, torch.ones(3)
    got, want = (
        run(norm, (x.double(), weight.double()), [torch.ones(40_000, 3)], dtype, "native")[2]
        for dtype in (torch.float32, torch.float64)
    )
    torch.testing.assert_close(got.double(), want, rtol=5e-7, atol=0)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_layers_take_every_stage_from_the_backend_they_are_given(backend, monkeypatch):
    """Where a layer's backend is plain torch, no fused kernel runs: second derivatives of its parts exist."""
    monkeypatch.setattr(_native, "call", None)
    x = torch.randn(2, 5, 8)
    for layer in (
        HGRN(8, backend=backend),
        HGRN(8, unit="complex", backend=backend),
        HGRN2(8, expand_ratio=4, backend=backend),
    ):
        y, _ = layer(x, lower_bound=torch.full((8,), 0.1))
        y.sum().backward()
    x = x.double().requires_grad_()
    assert torch.autograd.gradgradcheck(RMSNorm(8, backend=backend).double(), x)
    assert torch.autograd.gradgradcheck(SwiGLU(8, 3, backend=backend).double(), x)
    with pytest.raises(TypeError):
        RMSNorm(8)(x)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="rms_norm: unknown backend 'fast'"):
        RMSNorm(4, backend="fast")(torch.ones(1, 4))
    with pytest.raises(ValueError, match="swiglu: unknown backend 'fast'"):
        SwiGLU(4, 4, backend="fast")(torch.ones(1, 4))

"""The native backend as torch and its users meet it: schemas, modes, gradients, threads, instruction sets.

Layouts and memory: test_native_memory.py. That its numbers are right, test_native_numbers.py and the tests of each
op say.
"""

import re
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longstream.ops import _native, native_kernels, op_names
from tests.every_op import (
    KINDS,
    ONE_OF_EACH,
    answer,
    assert_same_bits,
    check,
    cotangent,
    forget_gate_sample,
    gated_scan_sample,
    gla_sample,
    long_conv_sample,
    place,
    results,
    samples,
    short_conv_sample,
    two_sided_sample,
)

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason=f"native: {_native.MISSING}")


# Large enough that there is work for two threads: many short rows, a few long ones, wide and narrow.
LARGE = {
    "gla of long rows": lambda: gla_sample(1, 700, 2, 64, 80, dtype=torch.float32),
    "gla of many rows": lambda: gla_sample(9, 70, 4, 16, 24, dtype=torch.float32),
    "gla packed": lambda: gla_sample(1, 500, 2, 33, 40, cu_seqlens=[0, 1, 300, 300, 500], dtype=torch.float32),
    "gated_scan of a long row": lambda: gated_scan_sample(1, 9000, 17, dtype=torch.float32),
    "gated_scan of wide rows": lambda: gated_scan_sample(3, 300, 520, dtype=torch.float32),
    "gated_scan complex": lambda: gated_scan_sample(2, 3000, 70, unit="complex", reverse=True, dtype=torch.float32),
    "short_conv": lambda: short_conv_sample(2, 3000, 70, 4, dtype=torch.float32),
    "long_conv of a long row": lambda: long_conv_sample(1, 5000, 9, 5000, dtype=torch.float32),
    "long_conv of wide rows": lambda: long_conv_sample(3, 300, 200, 300, dtype=torch.float32),
    "long_conv_two_sided": lambda: two_sided_sample(2, 900, 40, 900, dtype=torch.float32),
    "forget_gate": lambda: forget_gate_sample(3, 2000, 70, dtype=torch.float32),
}


# What torch is told of the operators


class Record(TorchDispatchMode):
    """The calls of the library's own operators."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "longstream":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def raw_calls():
    """A call of each operator of the library for each of the ways to leave arguments away, by name."""
    found = {}
    with Record() as record:
        for T in (67, 1):
            for make in samples(T=T).values():
                results(make(), "native")
                with torch.no_grad():
                    sample = make()
                    sample.call(sample.tensors, "native")
    for func, args, kwargs in record.calls:
        left_away = [arg is None for arg in (*args, *kwargs.values())]
        found.setdefault(f"{func} {''.join('-' if gone else 'x' for gone in left_away)}", (func, args, kwargs))
    return found


def has_gradients(func):
    keys = ("Autograd", "AutogradCPU")
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key) for key in keys)


def fresh(value, wants_gradient):
    """The argument again, with memory of its own, as a leaf."""
    if isinstance(value, (list, tuple)):
        return [fresh(item, wants_gradient) for item in value]
    if not torch.is_tensor(value):
        return value
    return value.detach().clone().requires_grad_(wants_gradient and value.is_floating_point())


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_opcheck():
    """Schema, gradients, fake tensors and dynamic shapes of every operator the ops call."""
    checked, with_gradients = set(), set()
    for name, (func, args, kwargs) in raw_calls().items():
        wanted = has_gradients(func) and "backward" not in func.name()  # those refuse, in words
        args = [fresh(arg, wanted) for arg in args]
        kwargs = {key: fresh(value, wanted) for key, value in kwargs.items()}
        outcome = torch.library.opcheck(func, tuple(args), kwargs, raise_exception=False)
        assert set(outcome.values()) == {"SUCCESS"}, f"{name}: {outcome}"
        checked.add(func.name())
        with_gradients |= {func.name()} if wanted else set()
    for op in ("gla", "gated_scan", "short_conv", "long_conv"):
        assert any(op in name for name in checked), f"no operator of the library is called by {op}"
    assert with_gradients


def test_every_operator_has_a_schema_and_a_kernel_for_the_cpu():
    listed = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("longstream::")]
    assert len(listed) > 2
    for name in listed:
        keys = ("CPU", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
        assert any(torch._C._dispatch_has_kernel_for_dispatch_key(name, key) for key in keys), name


@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("kind", [*ONE_OF_EACH, "gla packed", "gated_scan complex in reverse"])
def test_compile(kind):
    """In one graph, forward and backward; by all of the compiler but its code generation."""
    sample = samples()[kind]()
    torch.compiler.reset()
    compiled = torch.compile(lambda tensors: sample.call(tensors, "native"), fullgraph=True, backend="aot_eager")
    got = results(sample._replace(call=lambda tensors, backend: compiled(tensors)), "native")
    assert_same_bits(got, results(sample, "native"))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compile_with_code_generation():
    """And with the casts around a kernel that half precision needs."""
    sample = samples(dtype=torch.bfloat16)["gla"]()
    torch.compiler.reset()
    compiled = torch.compile(lambda tensors: sample.call(tensors, "native"), fullgraph=True)

    def call(tensors, backend):
        return compiled(tensors) if backend == "native" else sample.call(tensors, backend)

    check(sample._replace(call=call))


# Modes


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind):
    sample = samples()[kind]()
    expected = results(sample, "native")
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_bits(results(sample, "native"), expected)


@pytest.mark.parametrize("T", [1, 67])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_without_gradients(kind, mode, T):
    sample = samples(T=T)[kind]()
    expected = results(sample, "native")
    with mode():
        for wanted in (False, True):
            given = {name: tensor.detach().requires_grad_(wanted) for name, tensor in sample.tensors.items()}
            outputs = sample.call(given, "native")
            handed_on = {id(tensor) for tensor in given.values()}  # levels of a long convolution's state
            assert not any(out.requires_grad for out in outputs.values() if id(out) not in handed_on)
            assert_same_bits(outputs, {name: expected[name] for name in outputs})


@pytest.mark.parametrize("kind", KINDS)
def test_what_inference_mode_made_can_be_given(kind):
    with torch.inference_mode():
        sample = samples()[kind]()
        expected = sample.call(sample.tensors, "native")
    assert_same_bits(sample.call(sample.tensors, "native"), expected)


# Gradients


@pytest.mark.parametrize("op", op_names())
def test_second_derivatives_are_refused_in_words(op):
    """The words name the op, and a backend that has them."""
    sample = samples(T=3, dtype=torch.float64, gates="fast")[op]()

    def second(backend):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in sample.tensors.items()}
        outputs = sample.call(leaves, backend).values()
        loss = torch.stack([out.square().sum() for out in outputs]).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), create_graph=True)
        again = torch.stack([grad.square().sum() for grad in grads]).sum()
        return torch.autograd.grad(again, list(leaves.values()), materialize_grads=True)

    with pytest.raises(
        RuntimeError, match=rf"^[\w, ]*\b{op}\b[\w, ]*: .*first derivatives only.*use backend='(\w+)'"
    ) as error:
        second("native")
    named = re.findall(r"backend='(\w+)'", str(error.value))
    for got, expected in zip(second(named[-1]), second("reference"), strict=True):
        assert torch.allclose(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_one_tensor_alone(kind):
    """With all others frozen, in bits the same as with none."""
    sample = samples()[kind]()
    expected = results(sample, "native")
    for leaf in sample.tensors:
        tensors = {name: t.detach().requires_grad_(name == leaf) for name, t in sample.tensors.items()}
        got = results(sample, "native", tensors)
        assert_same_bits(got, {name: expected[name] for name in got})


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_one_output_alone(kind):
    sample = samples(dtype=torch.float64)[kind]()
    for only in sample.call(sample.tensors, "native"):
        check(sample, only=only)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_twice_through_one_graph(kind):
    sample = samples()[kind]()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in sample.tensors.items()}
    outputs = {name: out for name, out in sample.call(leaves, "native").items() if out.requires_grad}
    factors = [cotangent(name, out) for name, out in outputs.items()]
    given = list(outputs.values()), list(leaves.values()), factors
    first = torch.autograd.grad(*given, retain_graph=True, materialize_grads=True)
    second = torch.autograd.grad(*given, materialize_grads=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_input_does_not_change_gradients_in_silence(kind):
    """Autograd sees that what the backward pass needs was changed in place; or it needs a copy, or nothing of it."""
    sample = samples()[kind]()
    expected = results(sample, "native")
    for changed in sample.tensors:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in sample.tensors.items()}
        outputs = {name: out for name, out in sample.call(leaves, "native").items() if out.requires_grad}
        factors = [cotangent(name, out) for name, out in outputs.items()]
        with torch.no_grad():
            leaves[changed].sub_(1)
        try:
            grads = torch.autograd.grad(list(outputs.values()), list(leaves.values()), factors, materialize_grads=True)
        except RuntimeError as error:
            if "modified by an inplace operation" not in str(error):
                raise
            continue
        for name, grad in zip(leaves, grads, strict=True):
            assert torch.equal(grad, expected[f"d {name}"]), f"{changed} was changed, and d {name} with it"


# Threads and instruction sets


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", LARGE)
def test_the_number_of_threads_changes_no_bit(kind):
    sample = LARGE[kind]()
    with threads(1):
        expected = results(sample, "native")
    for count in (2, 3):
        with threads(count):
            assert_same_bits(results(sample, "native"), expected)


@contextmanager
def instruction_set(name):
    before = torch.ops.longstream.isa()
    try:
        torch.ops.longstream.use_isa(name)
    except RuntimeError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        torch.ops.longstream.use_isa(before)


@pytest.fixture(params=["base", "avx2", "avx512"])
def isa(request):
    with instruction_set(request.param):
        yield request.param


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_instruction_set(isa, kind, dtype):
    assert native_kernels() == torch.ops.longstream.isa() == isa
    check(samples(dtype=dtype)[kind]())


@pytest.mark.parametrize("kind", ["gla of long rows", "gated_scan of wide rows", "long_conv of wide rows"])
def test_threads_change_no_bit_of_any_instruction_set(isa, kind):
    sample = LARGE[kind]()
    expected = results(sample, "native")
    with threads(2):
        assert_same_bits(results(sample, "native"), expected)


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(RuntimeError, match="isa must be base, avx2 or avx512, got sse9"):
        torch.ops.longstream.use_isa("sse9")


# What a number that is not finite may reach


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_spreads_as_the_equation_says(kind, bad):
    """Put into one place of one tensor, or of one gradient of an output, it reaches what it reaches in the plain loop.

    That is no other row, head, channel or column, no earlier output, and no later gradient; and where it must arrive,
    it does. A long convolution may spoil its own row and channel all along, since every output of an FFT comes from
    every input.
    """
    sample = samples(gates="fast")[kind]()
    # A bound and its complement say the same twice, and which of them a formula uses is its own affair.
    spoiled = [(name, None) for name, t in sample.tensors.items() if t.numel() and name not in ("bound", "complement")]
    spoiled += [(None, name) for name in sample.call(sample.tensors, "reference")]
    for given, coming_back in spoiled:
        got, expected = (spread(sample, backend, given, coming_back, bad) for backend in ("native", "reference"))
        for name, finite in got.items():
            same = finite == expected[name]
            if sample.op.startswith("long_conv") and finite.dim() > 1:
                along = 1  # tokens, or taps
                same = finite.all(along) == expected[name].all(along)
            what = f"{given or f'the gradient of {coming_back}'} -> {name}"
            assert same.all(), f"{what}: {int((~same).sum())} wrong, first at {(~same).nonzero()[0].tolist()}"


def spread(sample, backend, given, coming_back, bad):
    """Where outputs and gradients are finite when one number is not."""
    leaves = {name: tensor.clone() for name, tensor in sample.tensors.items()}
    if given:
        leaves[given].view(-1)[place(leaves[given])] = -abs(bad) if given == "log_forget" else bad
    leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
    outputs = sample.call(leaves, backend)
    used = {name: out for name, out in outputs.items() if out.requires_grad}
    factors = {name: cotangent(name, out) for name, out in used.items()}
    if coming_back in factors:
        factors[coming_back].view(-1)[place(factors[coming_back])] = bad
    grads = torch.autograd.grad(
        list(used.values()), list(leaves.values()), list(factors.values()), materialize_grads=True
    )
    values = {name: out.detach() for name, out in outputs.items()}
    values |= {f"d {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {name: value.isfinite() for name, value in values.items()}


def test_the_answers_of_the_reference_are_the_right_yardstick():
    """It is float64 all the way, and its own plain loop in float32 is not exact."""
    sample = samples()["gla"]()
    exact, loop = answer(sample), answer(sample, torch.float32)
    assert all(value.dtype == torch.float64 for value in exact.values())
    assert all((loop[name].double() - exact[name]).abs().max() > 0 for name in exact)

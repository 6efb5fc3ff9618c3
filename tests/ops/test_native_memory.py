"""The native backend and memory: layouts of inputs, who owns results, sizes of zero, and more than there is."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from longstream.ops import _native, gated_scan, gla, long_conv, short_conv
from tests.every_op import (
    KINDS,
    ONE_OF_EACH,
    assert_same_bits,
    cotangent,
    forget_gate_sample,
    gated_scan_sample,
    gla_sample,
    long_conv_sample,
    results,
    samples,
    short_conv_sample,
    two_sided_sample,
)

pytestmark = pytest.mark.skipif(_native.MISSING is not None, reason=f"native: {_native.MISSING}")

ROOT = Path(__file__).resolve().parents[2]


def misaligned(tensor):
    """One element past the start of an allocation, and NaN on both sides."""
    buffer = torch.full((tensor.numel() + 2,), torch.nan, dtype=tensor.dtype)
    view = buffer[1:-1].view(tensor.shape)
    assert tensor.numel() == 0 or view.data_ptr() % 8 != 0 or tensor.element_size() == 8
    return view.copy_(tensor)


def transposed(tensor):
    """Dimensions in memory in the opposite order."""
    order = list(range(tensor.dim()))[::-1]
    return tensor.permute(order).contiguous().permute(order)


def strided(tensor):
    """Every third element of a wider last dimension, NaN between them."""
    wide = torch.full((*tensor.shape, 3), torch.nan, dtype=tensor.dtype)
    wide[..., 1] = tensor
    return wide[..., 1]


def cut(tensor):
    """Rows out of something longer in every dimension."""
    wide = torch.full([size + 3 for size in tensor.shape], torch.nan, dtype=tensor.dtype)
    view = wide[tuple(slice(2, 2 + size) for size in tensor.shape)]
    return view.copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [misaligned, transposed, strided, cut])
@pytest.mark.parametrize("kind", KINDS)
def test_layouts(kind, layout, dtype):
    """The same numbers anywhere in memory give the same bits."""
    sample = samples(dtype=dtype)[kind]()
    tensors = {name: layout(tensor) for name, tensor in sample.tensors.items()}
    assert_same_bits(results(sample, "native", tensors), results(sample, "native"))


@pytest.mark.parametrize("kind", KINDS)
def test_expanded_inputs(kind):
    """One number for a whole dimension, each of them in turn, without the memory for it."""
    sample = samples()[kind]()
    for dim in range(4):
        tensors, same = {}, {}
        for name, tensor in sample.tensors.items():
            narrow = tensor.narrow(dim, 0, min(1, tensor.shape[dim])) if dim < tensor.dim() else tensor
            tensors[name] = narrow.expand(tensor.shape)
            same[name] = tensors[name].contiguous()
        assert_same_bits(results(sample, "native", tensors), results(sample, "native", same))


@pytest.mark.parametrize("kind", KINDS)
def test_layouts_of_what_comes_back(kind):
    """Gradients of outputs as sums, slices and transposes make them."""
    sample = samples(dtype=torch.float64)[kind]()

    def gradients(backend):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in sample.tensors.items()}
        loss = torch.zeros((), dtype=torch.float64)
        for out in sample.call(leaves, backend).values():
            # expanded, with zeros in between, and transposed
            weight = cotangent("transposed", out.transpose(0, -1)).transpose(0, -1)
            loss = loss + out.sum() + out[..., ::2].square().sum() + (out * weight).sum()
        return torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)

    for got, exact in zip(gradients("native"), gradients("reference"), strict=True):
        assert torch.allclose(got, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("T", [0, 1, 67])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_stay_as_they_are_and_results_have_their_own_memory(kind, T):
    """A state of a long convolution may be handed on; nothing else is shared."""
    for dtype in (torch.float32, torch.bfloat16):
        sample = samples(T=T, dtype=dtype)[kind]()
        before = {name: tensor.clone() for name, tensor in sample.tensors.items()}
        results(sample, "native")
        outputs = sample.call(sample.tensors, "native")
        for name, tensor in before.items():
            assert torch.equal(sample.tensors[name], tensor), f"{name} was changed"
        taken = {tensor.untyped_storage().data_ptr() for tensor in sample.tensors.values()} - {0}
        for name, out in outputs.items():
            place = out.untyped_storage().data_ptr()
            assert place not in taken or (name.startswith("final ") and T < 2), f"{name} shares memory"
            taken.add(place or -1)


@pytest.mark.parametrize("kind", KINDS)
def test_results_hold_no_memory_beside_their_own(kind):
    """A state is kept for long, and saved."""
    sample = samples()[kind]()
    for name, value in sample.call(sample.tensors, "native").items():
        assert value.untyped_storage().nbytes() == value.nbytes, name


@pytest.mark.parametrize("op", ONE_OF_EACH)
def test_sizes_of_zero(op):
    """No row, no token, no channel: shapes as the reference has them."""
    empty = {
        "gla": [gla_sample(*sizes) for sizes in [(0, 5, 2, 3, 4), (2, 5, 0, 3, 4), (2, 5, 2, 0, 4), (2, 5, 2, 3, 0)]],
        "gated_scan": [
            gated_scan_sample(*sizes, unit=unit)
            for sizes in [(0, 5, 3), (2, 5, 0), (0, 0, 0)]
            for unit in ("real", "complex")
        ],
        "short_conv": [short_conv_sample(*sizes) for sizes in [(0, 5, 3, 4), (2, 5, 0, 4), (0, 0, 3, 1)]],
        "long_conv": [long_conv_sample(*sizes) for sizes in [(0, 5, 3, 4), (2, 5, 0, 4), (0, 70, 3, 80)]],
        "long_conv_two_sided": [two_sided_sample(*sizes) for sizes in [(0, 5, 3, 4), (2, 5, 0, 4)]],
        "forget_gate": [
            forget_gate_sample(*shape, bound=bound) for shape in [(0, 3), (2, 0), (0,)] for bound in (False, True)
        ],
    }
    for sample in empty[op]:
        got, expected = results(sample, "native"), results(sample, "reference")
        for name, value in got.items():
            assert torch.equal(value, expected[name]), name


def run_python(code, seconds=120):
    """Run a program beside this one, with the package of this tree."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + textwrap.dedent(code)
    # What is freed goes back to the system at once, so that a limit on memory means what it says.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    given = [sys.executable, "-c", code]
    return subprocess.run(given, capture_output=True, text=True, timeout=seconds, env=environment)


OUT_OF_MEMORY = """
    import gc, resource, sys
    import torch
    torch.set_num_threads(1)
    from longstream.ops import forget_gate, gated_scan, gla, long_conv, long_conv_two_sided, short_conv

    def numbers(*shape):
        return torch.full(shape, -0.01).requires_grad_()

    x = numbers(1, 65536, 16)
    calls = {
        "gla": lambda: gla(*gla_inputs, backend="native"),
        "gated_scan": lambda: gated_scan(x, x, theta=None, backend="native"),
        "short_conv": lambda: short_conv(x, taps[:, :4], activation="silu", backend="native"),
        "long_conv": lambda: long_conv(x, taps, backend="native"),
        "long_conv_two_sided": lambda: (long_conv_two_sided(x, taps, taps, backend="native"),) * 2,
        "forget_gate": lambda: forget_gate(x, backend="native"),
    }
    taps, row = numbers(16, 65536), numbers(1, 2048, 1, 256)
    gla_inputs = [row, row, row, row]

    def used():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()

    def run(op):
        out, final = calls[op]()
        loss = out.sum() + (final.sum() if isinstance(final, torch.Tensor) else final[1].sum())
        loss.backward()

    large = x, taps, gla_inputs
    for op in calls:
        x, taps, gla_inputs = numbers(1, 3, 16), numbers(16, 5), [numbers(1, 3, 1, 16)] * 4
        run(op)  # loads what is loaded once
        x, taps, gla_inputs = large
        failures, room = 0, 1 << 20
        while True:
            gc.collect()
            resource.setrlimit(resource.RLIMIT_AS, (used() + room, resource.RLIM_INFINITY))
            try:
                run(op)
                break
            except (RuntimeError, MemoryError) as error:
                failures, words = failures + 1, str(error)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            room = int(room * 1.3)
            assert room < 1 << 33, f"{op}: {words}"
        print(op, failures, flush=True)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is Linux's")
def test_out_of_memory_raises_and_nothing_crashes():
    """Every op with ever more memory, from almost none until it is enough: an error every time, never a crash."""
    done = run_python(OUT_OF_MEMORY)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    failures = dict(line.split() for line in done.stdout.splitlines())
    assert sorted(failures) == sorted(ONE_OF_EACH)
    assert all(int(count) >= 3 for count in failures.values()), failures


def test_sizes_beyond_any_memory_raise():
    """Inputs that cost nothing, expanded to 2^44 numbers."""
    one, huge = torch.zeros(1, 1, 1), 1 << 44
    with pytest.raises((RuntimeError, MemoryError)):
        gated_scan(one.expand(1, huge, 1), one.expand(1, huge, 1), backend="native")
    with pytest.raises((RuntimeError, MemoryError)):
        short_conv(one.expand(1, huge, 1), torch.zeros(1, 4), backend="native")
    with pytest.raises((RuntimeError, MemoryError)):
        long_conv(one.expand(1, huge, 1), torch.zeros(1, 4), backend="native")
    q = torch.zeros(1, 1, 1, 1)
    with pytest.raises((RuntimeError, MemoryError)):
        gla(*[q.expand(1, huge, 1, 1)] * 4, backend="native")
    wide = q.expand(1, 1, 1, 1 << 22)
    with pytest.raises((RuntimeError, MemoryError)):
        gla(wide, wide, wide, wide, backend="native")

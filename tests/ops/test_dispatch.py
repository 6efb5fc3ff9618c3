"""How a backend is chosen, and how it refuses."""

import pytest
import torch

from longstream.ops import (
    _dispatch,
    _native,
    available_backends,
    forget_gate,
    gated_scan,
    gla,
    long_conv,
    long_conv_two_sided,
    op_names,
    short_conv,
)

OPS = ("forget_gate", "gated_scan", "gla", "long_conv", "long_conv_two_sided", "short_conv")


def call(op, backend):
    x, taps = torch.ones(1, 3, 2), torch.ones(2, 4)
    if op == "forget_gate":
        return forget_gate(x, backend=backend)
    if op == "gla":
        q = torch.ones(1, 3, 2, 4)
        return gla(q, q, torch.ones(1, 3, 2, 5), -q, backend=backend)
    if op == "gated_scan":
        return gated_scan(x, -x, backend=backend)
    if op == "long_conv":
        out, state = long_conv(x, taps, backend=backend)
        return out, state.recent
    if op == "long_conv_two_sided":
        out = long_conv_two_sided(x, taps, taps, backend=backend)
        return out, out
    return short_conv(x, taps, backend=backend)


def test_every_op_is_here():
    assert sorted(OPS) == op_names()


@pytest.mark.parametrize("op", OPS)
def test_reference_and_torch_run_everywhere(op):
    backends = available_backends(op)
    assert backends["reference"] is None
    assert backends["torch"] is None
    assert "auto" not in backends


@pytest.mark.parametrize("op", OPS)
def test_the_kernels_leave_transforms_and_forward_mode_to_torch(op):
    """They have no rules for either, and without a word a tangent would be lost."""
    seen = []

    def f(x):
        seen.append(available_backends(op)["native"])
        return x.sum()

    x = torch.ones(3)
    torch.func.grad(f)(x)
    with torch.autograd.forward_ad.dual_level():
        f(x)
    f(x)
    assert "torch.func" in seen[0]
    assert "forward mode" in seen[1]
    assert seen[2] == _native.MISSING


@pytest.mark.parametrize("op", OPS)
def test_auto_prefers_the_kernels(op):
    """They stand first, and where they are not compiled, or for another device, they say so."""
    assert next(iter(available_backends(op))) == "native"
    assert available_backends(op)["native"] == _native.MISSING
    assert available_backends(op, torch.empty(0, device="meta"))["native"] == "needs CPU tensors, got meta"


@pytest.mark.parametrize("op", OPS)
def test_without_the_library_auto_is_torch_and_native_says_what_to_do(op, monkeypatch):
    monkeypatch.setattr(_native, "MISSING", "not compiled: install longstream again")
    assert call(op, "auto")[0].isfinite().all()
    with pytest.raises(RuntimeError, match=rf"{op}: .*native.*not compiled: install longstream again"):
        call(op, "native")


@pytest.mark.parametrize("op", OPS)
def test_what_is_available_runs_and_what_is_not_says_why(op):
    """A refusal is a RuntimeError that names the op, the backend and the reason."""
    out, final = call(op, "reference")
    for name, refusal in available_backends(op).items():
        if refusal is None:
            other_out, other_final = call(op, name)
            assert torch.allclose(other_out, out)
            assert torch.allclose(other_final, final)
        else:
            assert len(refusal.split()) > 2, f"{name}: {refusal!r} is not a sentence"
            with pytest.raises(RuntimeError) as error:
                call(op, name)
            assert str(error.value).startswith(f"{op}: ")
            assert name in str(error.value)
            assert refusal in str(error.value)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", ["cuda", "Torch", "", None, 3])
def test_unknown_backend(op, backend):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call(op, backend)
    message = str(error.value)
    assert message.startswith(f"{op}: unknown backend {backend!r}")
    for choice in ("auto", *available_backends(op)):
        assert repr(choice) in message


def test_unknown_op():
    with pytest.raises(ValueError, match=r"'softmax'.*gla"):
        available_backends("softmax")


def test_changing_the_answer_changes_nothing():
    """The dict that comes back is the caller's."""
    available_backends("gla")["torch"] = "out of order"
    assert available_backends("gla")["torch"] is None


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
@pytest.mark.parametrize("op", OPS)
def test_a_failing_backend_is_not_replaced(op, backend, monkeypatch):
    """Nothing falls back in silence: the error of the backend that was to run reaches the caller, in "auto" too."""
    broken = RuntimeError("broken on purpose")

    def fail(*args, **kwargs):
        raise broken

    first = next(name for name, refusal in available_backends(op).items() if refusal is None)
    name = first if backend == "auto" else backend
    monkeypatch.setitem(_dispatch._TABLES[op], name, _dispatch.Backend(fail, lambda x: None))
    with pytest.raises(RuntimeError) as error:
        call(op, backend)
    assert error.value is broken


def test_a_library_that_is_absent_broken_or_of_another_version_is_said_in_words(tmp_path, monkeypatch):
    assert _native._load() == _native.MISSING
    if _native.MISSING is None:
        monkeypatch.setattr(_native, "OPS", ("gla", "not_an_op_yet"))
        assert "without not_an_op_yet: install longstream again" in str(_native._load())
    monkeypatch.setattr(_native, "LIBRARY", tmp_path / "kernels.so")
    assert "not compiled" in str(_native._load())
    (tmp_path / "kernels.so").write_text("not a library")
    assert "kernels.so does not load" in str(_native._load())

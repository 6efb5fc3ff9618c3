"""long_conv's state: however the tokens come, it is the same, and it costs what is claimed."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longstream.ops import LongConvFilters, LongConvState, long_conv
from longstream.ops.long_conv.state import cat_rows
from tests.cases import backends, long_conv_case
from tests.numerics import assert_same


@pytest.fixture(params=backends("long_conv"))
def backend(request):
    return request.param


def feed(case, pieces, backend, ready=False):
    """The whole in pieces of these many tokens; ready: through LongConvFilters, so without a gradient of filters."""
    inputs, state, named = case.leaves(torch.float64)
    if ready:
        inputs["filters"] = LongConvFilters(named.pop("filters").detach())
    x, outs = inputs.pop("x"), []
    for part in x.split(pieces, dim=1):
        out, state = long_conv(part, **inputs, initial_state=state, backend=backend)
        outs.append(out)
    return case.measure(named, torch.cat(outs, 1), state)


@pytest.mark.parametrize("ready", [False, True], ids=["tensor", "LongConvFilters"])
@pytest.mark.parametrize("lengths", [None, [0, 0], [127, 127], [191, 191], [62, 330]], ids=str)
def test_split_anywhere_and_token_by_token(backend, lengths, ready):
    """In values, final state and all gradients, those of inputs and pending of the initial state on their own."""
    T = 70 if backend == "reference" else 280
    case = long_conv_case(2, T, 2, 300, lengths=lengths)
    whole = feed(case, [T], backend)
    ways = [[at, T - at] for at in (0, 1, 2, 63, 64, 65, 66, 128, 192, 256, T - 1, T) if at <= T]
    ways += [
        [1] * T,
        [13, 0, T - 13],
        *([[129, 1, 1, 149], [64, 64, 64, 64, 24], [60, 4, 196, 20]] if T == 280 else []),
    ]
    for pieces in ways:
        for name, got in feed(case, pieces, backend, ready).items():
            assert_same(f"{name} in {pieces}", got, whole[name])


@pytest.mark.parametrize("T", [1, 2, 64, 200])
def test_rows_of_different_lengths_are_each_as_if_alone(backend, T):
    lengths = [0, 5, 63, 64, 130, 200, 383, 448]
    case = long_conv_case(len(lengths), T, 3, 260, lengths=lengths)
    inputs, state, _ = case.leaves(torch.float64)
    with torch.no_grad():
        out, final = long_conv(**inputs, initial_state=state, backend=backend)
        alone = []
        for i in range(len(lengths)):
            row = inputs | {"x": inputs["x"][i : i + 1]}
            row_out, row_final = long_conv(**row, initial_state=state.select([i]), backend=backend)
            assert_same(f"out of row {i}", out[i : i + 1], row_out)
            alone.append(row_final)
    joined = cat_rows(alone)
    assert final._fields == joined._fields
    for name, got, expected in zip(final._fields, final, joined, strict=True):
        assert_same(name, got, expected)


def test_a_state_is_never_changed(backend):
    """Every state of a run over several merges, all of it or rows in turn, goes on from where it stood."""
    inputs, state, _ = long_conv_case(3, 200, 2, 300, lengths=[120, 120, 61]).leaves(torch.float64)
    with torch.no_grad():
        x, seen = inputs.pop("x"), []
        for t in range(200):
            seen.append((state, [tensor.clone() for tensor in state], x[:, t:], None))
            _, state = long_conv(x[:, t : t + 1], **inputs, initial_state=state, backend=backend)
        for t in (3, 7, 8, 71, 72, 135, 199):
            _, after = long_conv(seen[t][2], **inputs, initial_state=seen[t][0], backend=backend)
            for name, got, expected in zip(after._fields, after, state, strict=True):
                assert_same(f"{name} after going back to {t}", got, expected)
    for given, kept, *_ in seen:
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True))


def test_only_what_changes_is_made_anew():
    """Between blocks that is recent and length; at a block's end the levels below the new run and the run itself."""
    state = long_conv(torch.randn(1, 64 * 12 + 62, 2), h := torch.randn(2, 2000))[1]
    for changed in ([], [0], []):
        after = long_conv(torch.randn(1, 1, 2), h, initial_state=state)[1]
        for m in range(4):
            kept = all(a is b for a, b in zip(state.level(m), after.level(m), strict=True))
            assert kept == (m not in changed) or state.level(m)[0].shape[1] == 0
        state = after
    assert state.length.tolist() == [64 * 13 + 1]
    assert [state.level(m)[0].shape[1] for m in range(5)] == [64, 0, 256, 512, 0]


def test_four_blocks_merge(backend):
    """Where the fourth block ends, the runs of two and of one block and the recent inputs become one run."""
    h, x = torch.randn(2, 600, dtype=torch.float64), torch.randn(1, 4 * 64 + 1, 2, dtype=torch.float64)
    _, before = long_conv(x[:, :255], h, backend=backend)
    assert [tensor.shape[1] for tensor in before[2::2]] == [64, 128]
    _, state = long_conv(x[:, 255:256], h, initial_state=before, backend=backend)
    assert [tensor.shape[1] for tensor in state[2::2]] == [0, 0, 256]
    assert torch.equal(state.level(2)[0], x[:, :256])
    assert not state.recent.any()
    lag = 256 + torch.arange(256)[:, None] - torch.arange(256)
    assert_same("pending_2", state.level(2)[1][0], torch.einsum("dos,sd->od", h[:, lag], x[0, :256]))
    out, _ = long_conv(x[:, 256:], h, initial_state=state, backend=backend)
    assert_same("out", out[0, 0], (h[:, :257].flip(1).T * x[0]).sum(0))


class Count(TorchDispatchMode):
    """Numbers in all tensors that operators make anew, and the sizes of all FFTs."""

    def __init__(self):
        super().__init__()
        self.made, self.ffts = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        given = {a.untyped_storage().data_ptr() for a in tree_leaves(args) if torch.is_tensor(a)}
        for result in tree_leaves(results):
            if torch.is_tensor(result) and result.untyped_storage().data_ptr() not in given:
                self.made += result.numel()
        if func is torch.ops.aten._fft_r2c.default:
            self.ffts.append(args[0].shape[-1])
        return results


def test_cost_of_a_step_and_of_many():
    """4096 steps: between blocks a step does not depend on what was before; all of them cost O(T log^2 T)."""
    T, C, steps, state = 4096, 64, [], None
    filters, x = LongConvFilters(torch.randn(1, T)), torch.randn(1, T, 1)
    with torch.no_grad():
        for t in range(T):
            with Count() as count:
                _, state = long_conv(x[:, t : t + 1], filters, initial_state=state, backend="torch")
            steps.append(count)
    # Products, their sum, the new recent inputs and some scalars: a few numbers for each of 64 recent tokens.
    assert max(step.made for t, step in enumerate(steps, start=1) if t % C) <= 5 * C
    assert not [step for t, step in enumerate(steps, start=1) if t % C and step.ffts]
    # A run of U tokens is made every 2 U tokens, by an FFT of 2 U, and once another of its filter.
    for t, step in enumerate(steps, start=1):
        if t % C == 0:
            run = C * (t // C & -(t // C))
            assert set(step.ffts) == {2 * run}
            assert len(step.ffts) == (2 if t == run else 1)
    total = sum(step.made for step in steps)
    naive = T * T / 2  # one product for each pair of an output and an earlier input
    assert total < naive / 4
    assert total < 4.5 * sum(step.made for step in steps[: T // 4])  # twelvefold and more for what is quadratic


def test_ready_filters_keep_no_more_than_they_say():
    taps = torch.randn(3, 512)
    filters = LongConvFilters(taps)
    with torch.no_grad():
        for T in (*range(2, 200, 7), 300, 512, 1000, 1024):
            x = torch.randn(2, T, 3)
            out, state = long_conv(x, filters)
            expected, expected_state = long_conv(x, taps)
            assert torch.allclose(out, expected, atol=1e-5)
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(state, expected_state, strict=True))
            kept = sum(2 * spectrum.numel() for spectrum in filters._spectra.values())
            assert kept <= 5 * taps.numel()
    assert filters._spectra


def test_ready_filters_made_in_inference_mode_serve_gradients_of_inputs():
    filters = LongConvFilters(torch.randn(3, 200))
    with torch.inference_mode():
        for T in (1, 150):
            long_conv(torch.randn(2, T, 3), filters)
    for T in (1, 150):
        x = torch.randn(2, T, 3, requires_grad=True)
        out, _ = long_conv(x, filters)
        (grad,) = torch.autograd.grad(out.sum(), x)
        tap_sums = filters.taps[:, torch.arange(T)].cumsum(1).flip(1).T
        assert torch.allclose(grad, tap_sums.expand_as(grad), atol=1e-4)


def test_state_as_an_object():
    state = long_conv(torch.randn(2, 200, 3), torch.randn(3, 300))[1]
    assert state._fields == ("length", "recent", "inputs_0", "pending_0", "inputs_1", "pending_1")
    for other in (pickle.loads(pickle.dumps(state)), copy.copy(state), copy.deepcopy(state), LongConvState(*state)):
        assert type(other) is LongConvState
        assert all(torch.equal(a, b) for a, b in zip(state, other, strict=True))
    empty = LongConvState.zeros(2, 3, dtype=torch.float64)
    assert [tuple(tensor.shape) for tensor in empty] == [(2,), (2, 64, 3)]
    assert empty.length.dtype == torch.int64
    with pytest.raises(TypeError, match=r"LongConvState: expected length, recent and two tensors a level, got 3"):
        LongConvState(*state[:3])


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize(("T", "L"), [(64, 60), (150, 200)], ids=str)
def test_compile_equals_eager(T, L):
    """In one graph from the first token on; with a state, whose lengths are numbers, in several."""
    case = long_conv_case(2, T, 3, L)
    inputs, _, named = case.leaves(torch.float64)
    torch.compiler.reset()
    compiled = torch.compile(lambda **tensors: long_conv(**tensors, backend="torch"), fullgraph=True)
    exact = case.measure(named, *long_conv(**inputs, backend="torch"))
    for name, got in case.measure(named, *compiled(**inputs)).items():
        assert_same(name, got, exact[name])
    compiled = torch.compile(lambda x, filters, state: long_conv(x, filters, None, state, backend="torch"))
    state = long_conv(**inputs)[1]
    out, after = compiled(inputs["x"], inputs["filters"], state)
    expected, expected_after = long_conv(inputs["x"], inputs["filters"], None, state)
    assert_same("out", out, expected)
    for name, got, tensor in zip(after._fields, after, expected_after, strict=True):
        assert_same(name, got, tensor)

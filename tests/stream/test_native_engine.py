"""The native engine: histories, resets, bad numbers, rows of their own, and no memory taken in a step.

More than 300 lines: the cases of one class.
"""

import threading

import pytest
import torch
from torch.overrides import TorchFunctionMode

from longstream import build
from longstream.stream.compile import compile_step
from longstream.stream.engine import HOLD, PASS, RAISE, NativeEngine
from tests.numerics import assert_same
from tests.stream.programs import MODELS, NO_NATIVE, D, engine, forward, inputs, make, run
from tests.stream.test_layout import assert_equal

pytestmark = pytest.mark.skipif(NO_NATIVE is not None, reason=str(NO_NATIVE))


def held(native):
    assert native.held is not None
    return native.held


def one_step(native, x, reset=None, policy=RAISE):
    y = torch.full((native.batch_size, native.compiled.n_out), torch.nan)
    failed = native.step(x.contiguous(), y, reset, policy)
    return y, failed


@pytest.mark.parametrize("name", ["hgrn complex conv", "hgrn2 conv", "hybrid", "edifice", "language"])
def test_rows_go_back_and_go_on_as_if_they_had_not(name):
    model = make(name)
    x = inputs(model, 3, 20)
    native = engine(model, 3, history=4)
    first = run(native, x[:, :12])
    assert native.kept.tolist() == [4, 4, 4]
    native.back(4, [0])
    native.back(1, [2])
    assert native.kept.tolist() == [0, 4, 3]
    assert native.position.tolist() == [8, 12, 11]
    again, _ = one_step(native, torch.stack([x[0, 8], x[1, 12], x[2, 11]]))
    assert torch.equal(again[0], first[0, 8])
    assert torch.equal(again[2], first[2, 11])
    assert native.kept.tolist() == [1, 4, 4]
    # and every row is what it would have been by itself
    for row, frames in enumerate((9, 13, 12)):
        alone = engine(model)
        run(alone, x[row : row + 1, :frames])
        assert_equal(native.get([row]), alone.get())


def test_going_back_too_far_is_refused_and_moves_nothing():
    model = make("hgrn")
    x = inputs(model, 2, 5)
    native = engine(model, 2, history=3)
    run(native, x[:, :2])
    native.set(native.get([1]), [1])
    with pytest.raises(ValueError, match=r"frames must be at most what each row has kept, \[2, 0\], got 1"):
        native.back(1)
    assert native.position.tolist() == [2, 2]
    with pytest.raises(ValueError, match="frames must be an integer >= 0, got -1"):
        native.back(-1)
    native.back(0)
    native.back(2, [0])
    assert native.position.tolist() == [0, 2]
    native = engine(model)
    run(native, x[:1, :3])
    with pytest.raises(ValueError, match=r"\[0\], got 1"):
        native.back(1)


def test_reset_with_a_frame_starts_anew_and_can_be_taken_back():
    model = make("hybrid")
    x = inputs(model, 2, 20)
    native = engine(model, 2, history=5)
    run(native, x[:, :9])
    before = native.get()
    y, _ = one_step(native, x[:, 9], torch.tensor([False, True]))
    alone = engine(model)
    fresh, _ = one_step(alone, x[1:, 9])
    assert torch.equal(y[1:], fresh)
    assert_equal(native.get([1]), alone.get())
    assert native.position.tolist() == [10, 1]
    assert native.kept.tolist() == [5, 5]
    native.back(1)
    assert_equal(native.get(), before)
    native.reset([0])
    assert native.position.tolist() == [0, 9]
    assert native.kept.tolist() == [0, 4]
    assert_equal(native.get([0]), model.init_state(1))


def test_a_bad_frame_touches_nothing():
    model = make("features")
    x = inputs(model, 3, 6)
    for value in (torch.nan, torch.inf, -torch.inf):
        native = engine(model, 3, history=2)
        run(native, x[:, :4])
        before = native.get()
        bad = x[:, 4].clone()
        bad[1, 3], bad[2, 0] = value, value
        y, failed = one_step(native, bad)
        assert failed == 2
        assert y.isnan().all()
        assert_equal(native.get(), before)
        assert native.kept.tolist() == [2, 2, 2]
        good, failed = one_step(native, x[:, 4])
        assert failed == 0
        assert torch.equal(good, run(engine(model, 3), x[:, :5])[:, 4])


def test_hold_takes_the_last_good_number_of_its_row_and_channel():
    model = make("features")
    x = inputs(model, 2, 8)
    spoiled, finite = x.clone(), x.clone()
    spoiled[0, 0, 2], finite[0, 0, 2] = torch.nan, 0.0  # nothing was held yet
    spoiled[1, 3, 4], finite[1, 3, 4] = torch.inf, x[1, 2, 4]
    spoiled[1, 4, 4], finite[1, 4, 4] = torch.nan, x[1, 2, 4]
    native, plain = engine(model, 2, history=1), engine(model, 2)
    for t in range(8):
        y, failed = one_step(native, spoiled[:, t], policy=HOLD)
        assert failed == 0
        expected, _ = one_step(plain, finite[:, t])
        assert torch.equal(y, expected)
        assert torch.equal(held(native), finite[:, t])
    assert_equal(native.get(), plain.get())
    native.reset([1])
    assert not held(native)[1].any()
    assert held(native)[0].all()


def test_pass_leaves_the_rows_that_are_bad():
    model = make("features")
    x = inputs(model, 3, 8)
    native, alone = engine(model, 3, history=3), engine(model, 3)
    run(native, x[:, :5])
    run(alone, x[:, :5])
    bad = x[:, 5].clone()
    bad[1, 0] = torch.nan
    y, failed = one_step(native, bad, policy=PASS)
    assert failed == -1
    assert y[1].isnan().any()
    good, _ = one_step(alone, x[:, 5])
    assert torch.equal(y[[0, 2]], good[[0, 2]])
    assert native.position.tolist() == [6, 5, 6]
    assert native.kept.tolist() == [3, 3, 3]
    native.back(3)
    assert native.position.tolist() == [3, 2, 3]


@pytest.mark.parametrize("policy", [RAISE, HOLD, PASS])
def test_a_result_that_is_not_finite_is_not_taken_in(policy):
    model = make("features")
    x = inputs(model, 2, 4)
    native = engine(model, 2, history=2)
    for t in range(3):
        one_step(native, x[:, t], policy=policy)
    before = native.get()
    large = x[:, 3].clone()
    large[0] = 3e38  # its sums are infinite
    _, failed = one_step(native, large, policy=policy)
    assert failed == -1
    if policy == RAISE:
        assert_equal(native.get(), before)
    else:
        assert native.position.tolist() == [3, 4]
        assert_equal(native.get([0]), before.select([0]))
    assert all(t.isfinite().all() for t in native.get().tensors())


def test_rows_are_copied_with_their_history():
    model = make("hybrid")
    x = inputs(model, 3, 12)
    native = engine(model, 3, history=3)
    run(native, x[:, :7])
    native.back(2, [0])
    held(native).copy_(torch.randn(3, D))
    native.copy_rows(0, [2])
    assert native.position.tolist() == [5, 7, 5]
    assert native.kept.tolist() == [1, 3, 1]
    assert_equal(native.get([2]), native.get([0]))
    assert torch.equal(held(native)[2], held(native)[0])
    native.back(1, [2])
    alone = engine(model)
    run(alone, x[:1, :4])
    assert_equal(native.get([2]), alone.get())
    assert native.position.tolist() == [5, 7, 4]


def test_random_calls_agree_with_engines_of_one_row():
    """Steps, resets, rollbacks, restores and copies, against a list of states for each row."""
    model = make("hybrid")
    compiled = compile_step(model)
    native, B = NativeEngine(compiled, 3, 6), 3
    one = NativeEngine(compiled, 1, 2)
    past = [[model.init_state(1)] for _ in range(B)]
    choice = torch.Generator().manual_seed(1)

    def draw(n):
        return int(torch.randint(n, (), generator=choice))

    for _ in range(400):
        row, what = draw(B), draw(8)
        if what < 4:
            x, reset = torch.randn(B, D, generator=choice), torch.rand(B, generator=choice) < 0.1
            y, failed = one_step(native, x, reset if what else None)
            assert failed == 0
            for b in range(B):
                one.set(model.init_state(1) if what and reset[b] else past[b][-1])
                expected, _ = one_step(one, x[b : b + 1])
                assert torch.equal(y[b : b + 1], expected)
                past[b] = [*past[b], one.get()][-5:]
        elif what == 4:
            frames = draw(len(past[row]))
            native.back(frames, [row])
            past[row] = past[row][: len(past[row]) - frames]
        elif what == 5:
            native.reset([row])
            past[row] = [model.init_state(1)]
        elif what == 6:
            native.set(past[row][0], [row])
            past[row] = past[row][:1]
        else:
            native.copy_rows(row, [(row + 1) % B])
            past[(row + 1) % B] = list(past[row])
        assert native.kept.tolist() == [len(states) - 1 for states in past]
        assert native.position.tolist() == [int(states[-1].position) for states in past]
    for b in range(B):
        assert_equal(native.get([b]), past[b][-1])


def test_a_longest_sequence_is_kept_to_in_the_models_words():
    for name, limit, who in (("hyena", 60, "max_seq_len=60"), ("edifice-hyena", 60, "seq_len=60")):
        model = build(name, embed_dim=4, hidden_size=8, num_layers=1)
        x = inputs(model, 2, limit + 5)
        native = engine(model, 2, history=3)
        run(native, x[:, :limit])
        with pytest.raises(ValueError, match=f"{who}.* (61|1 frames after 60)"):
            one_step(native, x[:, limit])
        assert native.position.tolist() == [limit, limit]
        with pytest.raises(ValueError, match=who):
            one_step(native, x[:, limit], torch.tensor([True, False]))
        native.back(1, [1])
        one_step(native, x[:, limit], torch.tensor([True, False]))
        assert native.position.tolist() == [1, limit]
        assert native.kept[0] == 0  # its tape has begun anew
        with pytest.raises(ValueError, match="history must be at most 64"):
            engine(model, history=65)


def test_refuses_sizes_rows_and_tokens():
    model = make("language")
    for name, arguments in (("batch_size", (0, 2, 1)), ("slots", (1, 1, 1)), ("threads", (1, 2, 0))):
        with pytest.raises(ValueError, match=f"NativeEngine: {name} must be an integer >="):
            NativeEngine(compile_step(model), *arguments)
    native = engine(model, 2)
    for ids in ([0, 21], [-1, 3]):
        with pytest.raises(ValueError, match=r"frame.*\[0, 21\)"):
            one_step(native, torch.tensor(ids))
    with pytest.raises(ValueError, match=r"rows must lie in \[0, 2\), got \[2\]"):
        native.reset([2])
    features = engine(make("features"), 2)
    with pytest.raises(RuntimeError, match="x"):
        one_step(features, torch.zeros(2, 6))
    assert native.held is None


def test_a_step_calls_nothing_of_torch():
    """So that no tensor is made, nor a handle of one; ``longstream bench step`` counts what is asked of malloc."""

    class Calls(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.names = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    for name in ("hybrid", "features", "edifice"):
        model = make(name)
        x = inputs(model, 2, 1)[:, 0].contiguous()
        native, y = engine(model, 2, history=4), torch.empty(2, D)
        anew = torch.tensor([True, False])
        with Calls() as calls:
            native.step(x, y)
            native.step(x, y, anew)
        made = ("torch.", "aten.", "longstream.")
        assert not [name for name in calls.names if name.startswith(made)], calls.names


def test_two_engines_of_one_step_run_on_two_threads():
    model = make("hgrn2 conv")
    compiled = compile_step(model)
    x = inputs(model, 2, 300)
    expected = [run(NativeEngine(compiled, 1), x[i : i + 1]) for i in range(2)]
    got: dict[int, torch.Tensor] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: run(NativeEngine(compiled, 1), x[i : i + 1])}))
        for i in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], expected[i]) for i in range(2))


def test_sizes_in_bytes():
    model = make("hgrn")
    native = engine(model, 2, history=3)
    assert native.nbytes == 5 * 2 * (3 * 16 * 4 + 8)  # slots, rows, layers of 16 floats and a position
    assert native.weight_bytes == compile_step(model).weight_bytes


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_not_asked_for(name):
    model = make(name)
    x = inputs(model, 1, 3)
    if x.is_floating_point():
        x.requires_grad_()
    native = engine(model)
    y = torch.empty(1, native.compiled.n_out)
    assert native.step(x[:, 0].contiguous(), y) == 0
    assert not y.requires_grad
    assert_same(name, y, forward(model, x)[0][:, 0].detach(), 1e-5)

"""What the native step does around its program: rows, resets, bad numbers, threads, memory."""

import ctypes
import math
import sys
import threading
import time

import pytest
import torch

from tests.stream.machine import HOLD, KERNELS, PASS, RAISE, Machine, add_linear, bits, needs_native

pytestmark = needs_native


def counter(n: int = 2, **how) -> Machine:
    """out = sum of all frames so far."""
    m = Machine(n, n, **how)
    ones = m.constant(torch.ones(n))
    m.add("pool", **{"in": 0}, out=0, n=n, kind=0, state=m.state(n))
    m.add("affine", **{"in": 0}, out=0, n=n, weight=ones, bias=-1)
    return m


def test_rows_reset_and_slots():
    m = counter().start(3, slots=4)
    x = torch.randn(3, 6, 2)
    for t in range(6):
        reset = torch.tensor([False, t == 2, t == 4])
        failed, y = m.step(x[:, t].contiguous(), reset)
        for b, start in enumerate((0, 2 if t >= 2 else 0, 4 if t >= 4 else 0)):
            assert m.position[m.slot[b], b] == t + 1 - start
            torch.testing.assert_close(y[b], x[b, start : t + 1].mean(0))
        assert failed == 0
    was = m.present.clone()
    m.step(torch.ones(3, 2))
    m.slot.copy_((m.slot - 1) % 4)  # back by one
    assert torch.equal(m.present, was)
    failed, y = counter().start(0).step(torch.zeros(0, 2))
    assert failed == 0
    assert y.shape == (0, 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_numbers_in_frames(bad):
    good, x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, bad], [5.0, 6.0]])

    m = counter().start(2)
    m.step(good)
    memory = [part.clone() for part in (m.states, m.position, m.slot, m.held)]
    failed, y = m.step(x)
    assert failed == 1
    assert y.isnan().all()
    for was, part in zip(memory, (m.states, m.position, m.slot, m.held), strict=True):
        assert torch.equal(was.nan_to_num(7), part.nan_to_num(7))

    m = counter().start(2)
    m.step(good, policy=HOLD)
    assert torch.equal(m.held, good)
    failed, y = m.step(x, policy=HOLD)
    assert failed == 0
    assert torch.equal(y, torch.tensor([[1.0, 2.0], [4.0, 5.0]]))
    assert torch.equal(m.held, torch.tensor([[1.0, 2.0], [5.0, 6.0]]))

    m = counter().start(2)
    m.step(good, policy=PASS)
    failed, y = m.step(x, policy=PASS)
    assert failed == -1
    assert not y[0, 1].isfinite()
    assert torch.equal(y[1], torch.tensor([4.0, 5.0]))
    assert m.slot.tolist() == [1, 2]
    assert m.position[m.slot, [0, 1]].tolist() == [1, 2]
    failed, y = m.step(good, policy=PASS)  # the row goes on from where it was
    assert failed == 0
    assert torch.equal(y[0], good[0])


def test_missing_numbers_where_they_are_allowed():
    def machine() -> Machine:
        m = Machine(2, 2, out=2, allow_nan=torch.tensor([True, False]))
        zero, one = m.constant(torch.zeros(2)), m.constant(torch.ones(2))
        m.add("normalize", **{"in": 0}, out=m.scratch(2), n=2, mean=zero, std=one, indicators=0, index=-1)
        return m.start(1)

    missing, infinite = torch.tensor([[math.nan, 2.0]]), torch.tensor([[math.inf, 2.0]])
    for policy in (RAISE, HOLD, PASS):
        m = machine()
        failed, y = m.step(missing, policy=policy)
        assert failed == 0
        assert y.tolist() == [[0.0, 2.0]]
        failed, y = m.step(infinite, policy=policy)
        assert failed == {RAISE: 1, HOLD: 0, PASS: -1}[policy]
        assert policy != HOLD or y.tolist() == [[0.0, 2.0]]


@pytest.mark.parametrize("policy", [RAISE, HOLD, PASS])
def test_results_that_are_not_finite(policy):
    m = Machine(2, 2)
    m.add("affine", **{"in": 0}, out=0, n=2, weight=m.constant(torch.full((2,), 1e30)), bias=-1)
    m.add("pool", **{"in": 0}, out=0, n=2, kind=0, state=m.state(2))
    m.start(2)
    good, large = torch.ones(2, 2), torch.tensor([[1.0, 1.0], [1.0, 1e30]])
    assert m.step(good, policy=policy)[0] == 0
    failed, y = m.step(large, policy=policy)
    assert failed == -1
    assert y[1, 1] == math.inf
    assert m.slot.tolist() == ([1, 1] if policy == RAISE else [2, 1])
    assert m.held[1].tolist() == ([1.0, 1.0] if policy == HOLD else [0.0, 0.0])
    failed, y = m.step(good, policy=policy)
    assert failed == 0
    assert y.isfinite().all()


def layered(width: int, layers: int, kind: int = 0, *, n_in: int | None = None, n_out: int | None = None) -> Machine:
    """Linear maps, gates and norms, as in a model of HGRN layers."""
    n_in, n_out = n_in or width, n_out or width
    m = Machine(n_in, n_out, out=n_in + 6 * width)
    x, (h, c, z) = n_in, (n_in + i * width for i in (1, 2, 4))
    m.scratch(6 * width + n_out)
    ones = m.constant(torch.ones(width))

    def linear(inputs: int, outputs: int, in_: int, out: int, add: int = 0) -> None:
        add_linear(m, torch.randn(outputs, inputs) * inputs**-0.5, None, kind, out, in_=in_, add=add)

    linear(n_in, width, 0, x)
    for _ in range(layers):
        m.add("norm", **{"in": x}, out=h, n=width, kind=0, eps=bits(1e-5), weight=ones, bias=-1, gate=-1)
        linear(width, 2 * width, h, c)
        m.add("hgrn", c=c, z=z - width, out=c, n=width, bound=-1, complement=-1, theta=-1, state=m.state(width))
        linear(width, width, c, x, add=1)
        m.add("norm", **{"in": x}, out=h, n=width, kind=0, eps=bits(1e-5), weight=ones, bias=-1, gate=-1)
        linear(width, 4 * width, h, c)
        m.add("multiply", a=c, activation=1, b=c + 2 * width, out=c, n=2 * width)
        linear(2 * width, width, c, x, add=1)
    linear(width, n_out, x, n_in + 6 * width)
    return m


@pytest.mark.parametrize("kind", range(3), ids=["float32", "bfloat16", "int8"])
def test_threads_and_batches_change_nothing(kind):
    x, results = torch.randn(5, 20, 48), []
    was = torch.get_num_threads()
    try:
        for threads, of_torch in ((1, 1), (2, 2), (3, 2), (5, 3), (4, 1)):
            torch.set_num_threads(of_torch)
            torch.manual_seed(1)
            m = layered(96, 2, kind, n_in=48, n_out=33).start(5, threads=threads)
            results.append((m.run(x), m.present.clone()))
            torch.manual_seed(1)
            m = layered(96, 2, kind, n_in=48, n_out=33).start(1, threads=threads)
            results.append((m.run(x[2:3]).expand(5, -1, -1), m.present.expand(5, -1)))
    finally:
        torch.set_num_threads(was)
    y, state = results[0]
    for i, (other, other_state) in enumerate(results):
        rows = slice(2, 3) if i % 2 else slice(None)
        assert torch.equal(other[rows], y[rows])
        assert torch.equal(other_state[rows], state[rows])


def test_a_step_writes_only_its_own_memory():
    """Memory that is not of the step is as it was: states of other slots, other rows' position, the constants."""
    m = layered(32, 1).start(3, slots=4)
    weights, x = m.weights.clone(), torch.randn(3, 32)
    m.step(x)
    states = m.states.clone()
    m.step(x)
    assert torch.equal(states[[0, 1]], m.states[[0, 1]])
    assert m.states[3].isnan().all()
    assert torch.equal(weights, m.weights)
    assert not m.workspace[: m.state_size // 2].any()


def test_steps_on_other_threads_overlap():
    """The step holds no lock of Python's: another thread counts while it runs."""
    m = layered(512, 4).start(8)
    x, y = torch.randn(8, 512), torch.empty(8, 512)
    arguments = m.arguments(x, y)
    running, counted = threading.Event(), []

    def count() -> None:
        running.wait()
        number = 0
        while running.is_set():
            number += 1
            time.sleep(0)  # gives way
        counted.append(number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # here nothing but a step can give way
    try:
        other = threading.Thread(target=count)
        other.start()
        running.set()
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            KERNELS.stream_step(*arguments)
        running.clear()
        other.join()
    finally:
        sys.setswitchinterval(interval)
    assert counted[0] > 10


def test_a_step_allocates_nothing():
    class Use(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "u", "f", "k")
        ]

    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        pytest.skip("the C library has no mallinfo2")
    mallinfo.restype = Use
    m = layered(64, 2).start(2)
    arguments = m.arguments(torch.randn(2, 64), torch.empty(2, 64))
    for _ in range(100):
        KERNELS.stream_step(*arguments)
    before = mallinfo()
    for _ in range(2000):
        KERNELS.stream_step(*arguments)
    after = mallinfo()
    assert (after.arena, after.hblkhd) == (before.arena, before.hblkhd)
    assert abs(after.u - before.u) < 4096  # less than the memory of one tensor a hundred steps
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        KERNELS.stream_step(*arguments)
    assert sum(abs(event.cpu_memory_usage) for event in profile.events() or ()) == 0

"""States of Hyena in the native step: out of it and into it, rows of their own, taken back, begun anew."""

import copy

import pytest
import torch
from hyena_streams import LONGEST, SAME_AS_PARALLEL, D, Run, frames, make, needs_native, own, width
from numerics import assert_same

from longstream.layers import Hyena
from longstream.layers.hyena_state import HyenaState
from longstream.models import State

pytestmark = needs_native

EDGES = (0, 1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 200, 255, 256, 257, 320)
the_states = pytest.mark.parametrize("name", ["heads", "order 3", "naive, order 3", "modal, heads", "edifice 2"])


@the_states
def test_a_state_goes_on_in_the_model(name):
    model = make(name)
    x = frames(model, 1, LONGEST)
    whole, run, done = model(x)[0], Run(model), 0
    for position in EDGES:
        run.steps(x[:, done:position])
        done = position
        state = run.engine.get()
        assert state.position.tolist() == [position]
        rest, _ = model(x[:, position:], own(model, state))
        assert_same(f"after {position}", rest, whole[:, position:], SAME_AS_PARALLEL)


@the_states
def test_a_prefilled_state_goes_on_natively_and_comes_back_bit_for_bit(name):
    model = make(name)
    x = frames(model, 1, LONGEST)
    whole, run = model(x)[0], Run(model)
    for position in EDGES:
        given = model(x[:, :position])[1] if position else model.init_state(1)
        if isinstance(model, Hyena):
            given = State((given,), torch.tensor([position]), run.compiled.fingerprint)
        run.engine.set(given)
        back = run.engine.get()
        for then, now in zip(given.tensors(), back.tensors(), strict=True):
            assert torch.equal(then, now)
        stop = min(position + 70, LONGEST)
        assert_same(f"after {position}", run.steps(x[:, position:stop]), whole[:, position:stop], SAME_AS_PARALLEL)


@the_states
def test_rows_at_positions_of_their_own(name):
    model = make(name)
    starts = torch.tensor([3, 64, 130, 200])
    x = frames(model, 4, LONGEST)
    whole, run = model(x)[0], Run(model, 4)
    for row, start in enumerate(starts):
        state = model(x[row : row + 1, :start])[1]
        if isinstance(model, Hyena):
            state = State((state,), start[None], run.compiled.fingerprint)
        run.engine.set(state, [row])
    for t in range(70):
        at = starts + t
        y = run.step(x[torch.arange(4), at])
        assert_same(f"step {t}", y, whole[torch.arange(4), at], SAME_AS_PARALLEL)
    state = run.engine.get()
    assert state.position.tolist() == (starts + 70).tolist()
    together = run.engine.get([2, 0])
    rest, _ = model(torch.stack([x[2, 200:230], x[0, 73:103]]), own(model, together))
    assert_same("goes on", rest, torch.stack([whole[2, 200:230], whole[0, 73:103]]), SAME_AS_PARALLEL)
    fresh = Run(model, 4)
    fresh.engine.set(state)
    for then, now in zip(state.tensors(), fresh.engine.get().tensors(), strict=True):
        assert torch.equal(then, now)
    assert torch.equal(fresh.step(x[:, 300]), run.step(x[:, 300]))


@pytest.mark.parametrize("name", ["heads", "naive, order 3", "modal", "edifice 1"])
def test_one_row_starts_anew(name):
    model = make(name)
    run, x = Run(model, 2), frames(model, 2, 150)
    run.steps(x[:, :70])
    other = frames(model, 1, 80, seed=9)
    mixed = torch.cat([x[:1, 70:], other])
    outs = [run.step(mixed[:, 0], torch.tensor([False, True]))]
    outs += [run.step(mixed[:, t]) for t in range(1, 80)]
    outs = torch.stack(outs, 1)
    assert_same("goes on", outs[0], model(x[:1])[0][0, 70:], SAME_AS_PARALLEL)
    assert_same("anew", outs[1], model(other)[0][0], SAME_AS_PARALLEL)


def taken_back(name, positions):
    """At each position 64 rows go back by 1 .. 64 frames, then on with other frames over the next merges."""
    model, most, further = make(name), 64, 140
    run = Run(model, most, history=most)
    x = frames(model, LONGEST + 200)
    for position in positions:
        run.engine.reset()
        for t in range(position):
            run.step(x[t].expand(most, -1))
        starts = []
        for k in range(1, most + 1):
            back = min(k, position)
            run.engine.back(back, [k - 1])
            starts.append(position - back)
        starts = torch.tensor(starts)
        steps = min(further, LONGEST - int(starts.max()))
        new = frames(model, most, steps, seed=position + 2)
        outs = run.steps(new)
        padded = torch.zeros(most, int(starts.max()) + steps, width(model))
        for row, start in enumerate(starts.tolist()):
            padded[row, :start] = x[:start]
            padded[row, start : start + steps] = new[row]
        at = starts[:, None] + torch.arange(steps)
        whole = model(padded)[0].gather(1, at[..., None].expand(-1, -1, D))
        assert_same(f"from {position}", outs, whole, SAME_AS_PARALLEL)


@pytest.mark.parametrize("name", ["tiled", "edifice 2"])
def test_taken_back_across_merges(name):
    taken_back(name, [1, 63, 64, 65, 128, 129, 170, 192, 193, 256, 300])


@pytest.mark.slow
def test_taken_back_from_every_position():
    taken_back("order 3", range(1, LONGEST))


def test_taken_back_is_a_fresh_run_bit_for_bit():
    model = make("heads")
    x, other = frames(model, 1, LONGEST), frames(model, 1, LONGEST, seed=5)
    for position, back in ((64, 1), (64, 64), (65, 2), (130, 3), (192, 64), (193, 64), (260, 40), (256, 64)):
        run, fresh, start = Run(model, history=64), Run(model), position - back
        run.steps(x[:, :position])
        run.engine.back(back)
        fresh.steps(x[:, :start])
        assert torch.equal(run.steps(other[:, start:]), fresh.steps(other[:, start:]))
        for ours, theirs in zip(run.engine.get().tensors(), fresh.engine.get().tensors(), strict=True):
            assert torch.equal(ours, theirs)


def test_a_start_anew_that_is_not_kept_leaves_the_past():
    model = make("heads")
    run, x = Run(model, 2), frames(model, 2, LONGEST)
    run.steps(x[:, :10])
    huge = torch.full((2, D), 3e38)
    assert run.engine.step(huge, run.y, torch.tensor([True, False])) < 0
    assert run.engine.step(huge, run.y, torch.tensor([True, True])) < 0
    assert run.engine.position.tolist() == [10, 10]
    assert_same("goes on", run.steps(x[:, 10:]), model(x)[0][:, 10:], SAME_AS_PARALLEL)


def test_a_step_that_is_not_kept_leaves_the_past():
    model = make("tiled")
    run, x = Run(model, history=64), frames(model, 1, LONGEST)
    outs = []
    for t in range(LONGEST):
        if t % 9 == 1 or t % 64 in (0, 63):
            assert run.engine.step(torch.full((1, D), 3e38), run.y) < 0
        outs.append(run.step(x[:, t]))
    assert_same("goes on", torch.stack(outs, 1), model(x)[0], SAME_AS_PARALLEL)


def test_copied_rows_have_tapes_of_their_own():
    model = make("tiled")
    run, x = Run(model, 3), frames(model, 3, LONGEST)
    run.steps(x[:, :100])
    run.engine.copy_rows(1, [0, 2])
    outs = run.steps(x[:, 100:])
    whole = model(torch.cat([x[1:2, :100].expand(3, -1, -1), x[:, 100:]], 1))[0]
    assert_same("goes on", outs, whole[:, 100:], SAME_AS_PARALLEL)


def test_states_that_do_not_fit():
    model = make("tiled")
    run, x = Run(model), frames(model, 1, 100)
    run.steps(x[:, :70])
    good = run.engine.get()
    (layer,) = good.layers

    def wrong(**fields):
        tensors = {**dict(zip(layer._fields, layer, strict=True)), **fields}
        return State((HyenaState(*tensors.values()),), good.position, good.fingerprint)

    bad = {
        "conv must have shape": wrong(conv=layer.conv[:, :1]),
        "length must be the state's position": wrong(length=layer.length + 1),
        "recent must have shape": wrong(recent=layer[2][..., :3]),
        "pending_0 must have shape": wrong(pending_0=layer[4][:, :, :5]),
        "must be finite": wrong(pending_0=layer[4] * torch.nan),
    }
    for message, state in bad.items():
        with pytest.raises(ValueError, match=message):
            run.engine.set(state)
    longer = Hyena(D, max_seq_len=2 * LONGEST).requires_grad_(False)
    _, state = longer(frames(longer, 1, LONGEST + 1))
    with pytest.raises(ValueError, match=f"length must be at most {LONGEST}, got"):
        run.engine.set(State((state,), torch.tensor([LONGEST + 1]), good.fingerprint))
    naively = copy.deepcopy(model)
    naively.set_decode("naive")
    with pytest.raises(TypeError, match="HyenaState"):
        run.engine.set(State((naively(x)[1],), torch.tensor([100]), good.fingerprint))
    assert_same("goes on", run.steps(x[:, 70:]), model(x)[0][:, 70:], SAME_AS_PARALLEL)

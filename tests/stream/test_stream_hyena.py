"""The native step of Hyena and of Edifice's: the model's own pass at every prefix."""

import pytest
import torch
from hyena_streams import (
    LONGEST,
    SAME_AS_PARALLEL,
    D,
    Run,
    edifice,
    every_model,
    frames,
    make,
    modal,
    needs_native,
    own,
)
from numerics import assert_same

from longstream.layers import Hyena
from longstream.layers.modal import ModalFilter
from longstream.stream._tiles import LANES
from longstream.stream.compile import CannotCompile, compile_step
from longstream.stream.engine import NativeEngine

pytestmark = needs_native


@every_model
def test_every_prefix_is_the_models(name):
    model = make(name)
    x = frames(model, 2, LONGEST)
    out = Run(model, 2).steps(x)
    assert_same("forward", out, model(x)[0], SAME_AS_PARALLEL)
    state, own_steps = model.init_state(2), []
    for t in range(140):
        y, state = model.step(x[:, t], state)
        own_steps.append(y)
    assert_same("step", out[:, :140], torch.stack(own_steps, 1), SAME_AS_PARALLEL)


@pytest.mark.parametrize("longest", [1, 2, 60, 63, 64, 65, 128, 192, 256, 257])
def test_filters_of_every_length(longest):
    torch.manual_seed(longest)
    model = Hyena(D, max_seq_len=longest).requires_grad_(False)
    run, x = Run(model), frames(model, 1, longest)
    assert_same("forward", run.steps(x), model(x)[0], SAME_AS_PARALLEL)
    before = run.engine.get()
    refusal = f"at most max_seq_len={longest} tokens, got {longest + 1}"
    with pytest.raises(ValueError, match=refusal) as native:
        run.step(x[:, 0])
    with pytest.raises(ValueError, match=refusal) as eager:
        model.step(x[:, 0], own(model, before))
    assert str(native.value) == str(eager.value)
    assert run.engine.position.tolist() == [longest]
    again = run.step(x[:, 0], torch.tensor([True]))
    assert_same("after a start anew", again, model(x[:, :1])[0][:, 0], SAME_AS_PARALLEL)


def test_edifice_refuses_in_its_own_words():
    model = edifice(2, window_size=9).eval().requires_grad_(False)
    run, x = Run(model), frames(model, 1, 9)
    run.steps(x)
    with pytest.raises(ValueError, match="must end within seq_len=9 frames, got 1 frames after 9"):
        run.step(x[:, 0])


@pytest.mark.parametrize(
    "tokens", [2200, pytest.param(20_000, marks=pytest.mark.slow)], ids=["2200 tokens", "20000 tokens"]
)
def test_thousands_of_tokens(tokens):
    torch.manual_seed(0)
    for model in (
        Hyena(D, max_seq_len=tokens, order=3, num_heads=2).requires_grad_(False),
        edifice(2, window_size=tokens).eval().requires_grad_(False),
    ):
        x = frames(model, 1, tokens)
        run = Run(model)
        assert_same("forward", run.steps(x), model(x)[0], SAME_AS_PARALLEL)
    long = modal()
    x = frames(long, 1, tokens)
    assert_same("modal forward", Run(long).steps(x), long(x)[0], SAME_AS_PARALLEL)


def test_threads_do_not_change_a_bit():
    torch.manual_seed(3)
    model = Hyena(150, max_seq_len=200).requires_grad_(False)
    x = torch.randn(3, 200, 150)
    outs = []
    for threads in (1, 2):
        engine, y = NativeEngine(compile_step(model), 3, threads=threads), torch.empty(3, 150)
        every = []
        for t in range(200):
            assert engine.step(x[:, t].contiguous(), y) == 0
            every.append(y.clone())
        outs.append(torch.stack(every, 1))
    assert torch.equal(*outs)
    assert_same("forward", outs[0], model(x)[0], SAME_AS_PARALLEL)


@pytest.mark.parametrize("isa", LANES)
def test_every_instruction_set(isa):
    before = torch.ops.longstream.isa()
    try:
        torch.ops.longstream.use_isa(isa)
    except RuntimeError as missing:
        pytest.skip(str(missing))
    try:
        model = make("order 3")
        run, x = Run(model), frames(model, 1, LONGEST)
        assert_same("forward", run.steps(x), model(x)[0], SAME_AS_PARALLEL)
        if isa != before:
            torch.ops.longstream.use_isa(before)
            run.engine.reset()
            with pytest.raises(RuntimeError, match="lanes"):
                run.step(x[:, 0])
    finally:
        torch.ops.longstream.use_isa(before)


def test_compiling_draws_no_random_numbers():
    model = make("order 4, heads")
    before = torch.get_rng_state()
    compile_step(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_refused():
    with pytest.raises(CannotCompile, match="causal is False"):
        compile_step(Hyena(D, causal=False))
    model = Hyena(D, max_seq_len=40)
    model.set_decode("modal")
    with pytest.raises(RuntimeError, match="needs modal filters"):
        compile_step(model)
    model.set_modal(ModalFilter(torch.zeros(1, D, 2, 2).double(), torch.zeros(1, D, 2, 2).double(), torch.zeros(1, D)))
    with pytest.raises(CannotCompile, match="modal filters must be float32"):
        compile_step(model)


def test_modal_filters_end_where_they_may_not_extrapolate():
    model = modal(extrapolate=False)
    run, x = Run(model), frames(model, 1, 40)
    run.steps(x)
    with pytest.raises(ValueError, match="at most max_seq_len=40 tokens, got 41"):
        run.step(x[:, 0])
    assert Run(modal()).compiled.longest is None

"""The equivalence contract on everything that has it, and that `assert_equivalent` notices when it is broken."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longstream.layers import HGRN2, HGRN2State, Hyena, ShortConv
from longstream.models import Backbone, Block, HGRN2Config, LanguageModel, ModelConfig
from longstream.testing import assert_equivalent

CONFIG = ModelConfig(
    hidden_size=12,
    num_layers=2,
    vocab_size=11,
    intermediate_size=10,
    mixer=HGRN2Config(expand_ratio=4, conv_size=3),
    initializer_range=0.3,
)
AUTHORS = {"query_activation": "sigmoid", "value_activation": "silu", "norm": "layer", "bias": True}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: HGRN2(12, expand_ratio=4),
    "layer with convolutions": lambda: HGRN2(12, expand_ratio=6, conv_size=4, conv_bias=True),
    "layer as the authors'": lambda: HGRN2(12, expand_ratio=3, **AUTHORS),
    "layer of 12 heads": lambda: HGRN2(12, expand_ratio=1, norm="rms_no_weight"),
    "layer of 1 head": lambda: HGRN2(12, expand_ratio=12, query_scale=12**-0.5),
    "layer on the reference": lambda: HGRN2(12, expand_ratio=4, conv_size=2, backend="reference"),
    "block": lambda: Block(CONFIG),
    "backbone": lambda: Backbone(CONFIG),
    "model": lambda: LanguageModel(CONFIG),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODULES)
def test_every_way_of_feeding_is_equivalent(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    assert_equivalent(MODULES[name]().to(dtype), lengths=(0, 1, 2, 5, 67))


def test_a_lower_bound_takes_part():
    bound = torch.tensor([0.0, 0.3, 0.9, 0.999], dtype=torch.float64).repeat(3).requires_grad_()
    assert_equivalent(HGRN2(12, expand_ratio=4).double(), lengths=(1, 65), lower_bound=bound)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["layer with convolutions", "model"])
def test_past_many_chunks(name: str, dtype: torch.dtype):
    torch.manual_seed(0)
    assert_equivalent(MODULES[name]().to(dtype), lengths=(257,))


# Each of these is a mistake that some library has made. The check must name the way of feeding that shows it.


class _DecaysOnPads(HGRN2):
    """Masks the input and lets the gate go on."""

    def forward(self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, **kwargs: Any) -> Any:
        if mask is None:
            return super().forward(x, state, **kwargs)
        x = torch.where(mask[..., None] != 0, x, 0.0)
        y, state = super().forward(x, state, **kwargs)
        return y * mask[..., None], state


class _DropsStateGradient(HGRN2):
    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> Any:
        y, state = super().forward(x, state, **kwargs)
        return y, HGRN2State(*(t.detach() for t in state))


class _ForgetsState(HGRN2):
    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> Any:
        fresh = None if state is None or x.shape[1] > 1 else state
        y, new = super().forward(x, fresh, **kwargs)
        return y, new


class _LooksAcrossBoundaries(HGRN2):
    def forward(self, x: Tensor, state: Any = None, *, cu_seqlens: Any = None, **kwargs: Any) -> Any:
        if cu_seqlens is None:
            return super().forward(x, state, **kwargs)
        y, last = super().forward(x, HGRN2State(*(t[:1] for t in state)), **kwargs)
        rows = len(cu_seqlens) - 1
        return y, HGRN2State(*(t.expand(rows, *t.shape[1:]) for t in last))


class _ChangesState(HGRN2):
    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> Any:
        if state is not None:
            with torch.no_grad():
                state.S.mul_(1.5)
        return super().forward(x, state, **kwargs)


class _StepsWithoutConvolution(HGRN2):
    def step(self, x_t: Tensor, state: Any, **kwargs: Any) -> Any:
        return super().step(x_t, HGRN2State(state.S, torch.zeros_like(state.conv)), **kwargs)


class _ShowsPads(HGRN2):
    def forward(self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, **kwargs: Any) -> Any:
        y, state = super().forward(x, state, mask=mask, **kwargs)
        return (y if mask is None else torch.where(mask[..., None] != 0, y, 1.0)), state


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (_DecaysOnPads, r"padded.*T=\d+: "),
        (_DropsStateGradient, "gradient of"),
        (_ForgetsState, "differs by"),
        (_LooksAcrossBoundaries, "padded|packed"),
        (_ChangesState, "changed a state it was given"),
        (_StepsWithoutConvolution, "token by token"),
        (_ShowsPads, "outputs at pads must be 0"),
    ],
)
def test_a_broken_contract_is_noticed(broken: type[HGRN2], says: str):
    torch.manual_seed(0)
    module = broken(12, expand_ratio=4, conv_size=3).double()
    with pytest.raises(AssertionError, match=says):
        assert_equivalent(module, lengths=(0, 1, 9))


class _MiscountsBatches(Hyena):
    def forward(self, x: Tensor, state: Any = None, **kwargs: Any) -> Any:
        y, last = super().forward(x, state, **kwargs)
        return y, last._replace(length=last.length + (len(x) > 1))


def test_integers_must_be_equal_whatever_the_tolerance():
    module = _MiscountsBatches(6, max_seq_len=40, filter_width=4, positional_width=3, decode="naive")
    with pytest.raises(AssertionError, match="T=9: final state of sequence 0, layer 0, tensor 1 differs by 1"):
        assert_equivalent(module, lengths=(9,), tolerance=0.5)


def test_a_module_without_sizes_needs_make_input():
    with pytest.raises(ValueError, match="pass make_input"):
        assert_equivalent(ShortConv(4, 3))


def test_the_random_state_is_left_alone():
    module = HGRN2(4, expand_ratio=2)
    before = torch.random.get_rng_state()
    assert_equivalent(module, lengths=(1,))
    assert torch.equal(before, torch.random.get_rng_state())

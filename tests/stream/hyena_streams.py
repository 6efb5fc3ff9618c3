"""Models of Hyena of every kind, Edifice's among them, and engines that run them."""

import pytest
import torch

from longstream.edifice import hyena as edifice_hyena
from longstream.layers import Hyena
from longstream.layers.modal import ModalFilter
from longstream.models import Backbone, HyenaConfig, ModelConfig
from longstream.stream.compile import compile_step
from longstream.stream.engine import NativeEngine
from longstream.stream.program import why_not_native

needs_native = pytest.mark.skipif(why_not_native() is not None, reason=str(why_not_native()))

D = 12
# float32 sums of the same products in another order, up to a few thousand of them, through two layers.
SAME_AS_PARALLEL = 1e-5
LONGEST = 330


def modal(order=2, num_heads=1, extrapolate=True):
    model = Hyena(D, max_seq_len=40, order=order, num_heads=num_heads)
    size, angle = torch.rand(order - 1, D // num_heads, 5) * 0.99, torch.rand(order - 1, D // num_heads, 5) * 3
    poles = torch.stack([size * angle.cos(), size * angle.sin()], -1)
    model.set_modal(ModalFilter(poles, torch.randn_like(poles), torch.randn(order - 1, D // num_heads)))
    model._modal.extrapolate = extrapolate
    model.set_decode("modal")
    return model


def naive(**options):
    model = Hyena(D, max_seq_len=LONGEST, **options)
    model.set_decode("naive")
    return model


def edifice(order, num_layers=1, window_size=LONGEST):
    options = {"hidden_size": D, "order": order, "num_layers": num_layers, "window_size": window_size}
    return edifice_hyena.build(embed_dim=7, **options, outputs="all")


MODELS = {
    "tiled": lambda: Hyena(D, max_seq_len=LONGEST),
    "heads": lambda: Hyena(D, max_seq_len=LONGEST, num_heads=3, activation="silu"),
    "order 3": lambda: Hyena(D, max_seq_len=LONGEST, order=3, activation="gelu", bias=False, filter_layout="channel"),
    "order 4, heads": lambda: Hyena(D, max_seq_len=LONGEST, order=4, num_heads=2, short_conv_size=1),
    "naive": naive,
    "naive, order 3": lambda: naive(order=3),
    "modal": modal,
    "modal, heads": lambda: modal(order=3, num_heads=2),
    "edifice 0": lambda: edifice(0),
    "edifice 1": lambda: edifice(1, num_layers=2),
    "edifice 2": lambda: edifice(2, num_layers=2),
    "edifice 3": lambda: edifice(3),
    "backbone": lambda: Backbone(
        ModelConfig(hidden_size=D, num_layers=2, mixer=HyenaConfig(max_seq_len=LONGEST, num_heads=2))
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name, seed=0):
    torch.manual_seed(seed)
    return MODELS[name]().eval().requires_grad_(False)


def width(model):
    return 7 if hasattr(model, "embed_dim") else D


def frames(model, *shape, seed=1):
    return torch.randn(*shape, width(model), generator=torch.Generator().manual_seed(seed))


class Run:
    """An engine, and what its rows have taken in and given out."""

    def __init__(self, model, rows=1, history=0, threads=1):
        self.model, self.compiled = model, compile_step(model)
        self.engine = NativeEngine(self.compiled, rows, history + 2, threads)
        self.y = torch.full((rows, D), torch.nan)

    def step(self, x, reset=None):
        assert self.engine.step(x.contiguous(), self.y, reset) == 0
        return self.y.clone()

    def steps(self, x):
        """x (B, T, .) -> (B, T, D)"""
        outs = x.new_empty(len(x), x.shape[1], D)
        for t in range(x.shape[1]):
            outs[:, t] = self.step(x[:, t])
        return outs


def own(model, state):
    """What the model itself takes of an engine's state."""
    return state if not isinstance(model, Hyena) else state.layers[0]

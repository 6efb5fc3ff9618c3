"""The Hyena layer and what safari, HyenaDNA and StripedHyena make of the same numbers."""

from typing import Any

import pytest
import torch

from longstream.layers import Hyena, hyena_decode
from longstream.layers.modal import ModalFilter
from tests import golden_hyena
from tests.numerics import SAME_AS_GOLDEN, assert_same, tensor

# A golden output is one long convolution or two of 64 numbers of size 1: rounding of 1e-15 and not more than a hundred.
SAME_OUTPUT = 1e-12
STRIPED_HYENA_FLOAT32 = 5e-5  # its own decoding is off from its own convolution by 5e-6, of values up to 23


def load_params(layer: Hyena, params: dict[str, Any]) -> Hyena:
    layer.load_state_dict({name: tensor(value) for name, value in params.items()})
    return layer


@pytest.mark.parametrize("name", golden_hyena.OPERATORS)
def test_golden(name, monkeypatch):
    """safari's two operators, in float64: outputs, what lies between, and every gradient they recorded."""
    case = golden_hyena.operator_case(name)
    layer = load_params(Hyena(case.hidden_size, **case.config).double(), case.params)
    seen = []
    original = hyena_decode.Tiled.convolve

    def convolve(self: Any, stage: int, g: torch.Tensor) -> torch.Tensor:
        seen.append((g, original(self, stage, g)))
        return seen[-1][1]

    monkeypatch.setattr(hyena_decode.Tiled, "convolve", convolve)
    x = tensor(case.x).requires_grad_()
    y, _ = layer(x)
    assert_same("y", y, case.y, SAME_OUTPUT)
    assert_same("c", layer.short_conv(layer.in_proj(x))[0].mT, case.mid["short_conv"], SAME_OUTPUT)
    for stage in range(layer.order - 1):
        for which, value in zip(("conv_in", "conv_out"), seen[stage], strict=True):
            if f"stage{stage}.{which}" in case.mid:
                assert_same(f"{which} {stage}", value.mT, case.mid[f"stage{stage}.{which}"], SAME_OUTPUT)
    wanted = {"x": x, **dict(layer.named_parameters())}
    assert set(wanted) == set(case.grads)
    grads = torch.autograd.grad((tensor(case.d_y) * y).sum(), list(wanted.values()))
    for key, got in zip(wanted, grads, strict=True):
        assert_same(f"d {key}", got, case.grads[key], SAME_AS_GOLDEN)


@torch.no_grad()
@pytest.mark.parametrize("decode", ["tiled", "naive"])
@pytest.mark.parametrize("name", golden_hyena.OPERATORS)
def test_golden_token_by_token(name, decode):
    case = golden_hyena.operator_case(name)
    layer = load_params(Hyena(case.hidden_size, **case.config, decode=decode).double(), case.params).eval()
    x, state = tensor(case.x), None
    for t in range(x.shape[1]):
        y, state = layer.step(x[:, t], state)
        assert_same(f"y_{t}", y, case.y[:, t], SAME_OUTPUT)


@pytest.mark.parametrize("name", golden_hyena.LANGUAGE_MODELS)
def test_golden_hyena_dna(name):
    """The mixers of HyenaDNA, from what their block's norm gives to what is added to the residual."""
    for case in golden_hyena.mixer_cases(name):
        layer = load_params(Hyena(case.x.shape[-1], **case.config).double(), case.params)
        assert_same("y", layer(tensor(case.x))[0], case.y, SAME_OUTPUT / 100)  # at their start, of size 5e-3


@torch.no_grad()
@pytest.mark.parametrize("prompt", [64, 53, 2, 1, 0])
@pytest.mark.parametrize("name", golden_hyena.MODAL)
def test_golden_striped_hyena(name, prompt):
    """Poles and residues given directly; also from prompts shorter than the short filter, where their code fails."""
    case = golden_hyena.modal_case(name)
    layer = Hyena(32, max_seq_len=8, decode="modal")
    layer.set_modal(ModalFilter(torch.from_numpy(case.poles), torch.from_numpy(case.residues), torch.zeros(1, 32)))
    layer.short_conv.weight.copy_(torch.from_numpy(case.short_weight))
    layer.short_conv.bias.copy_(torch.from_numpy(case.short_bias))  # type: ignore[union-attr]
    layer.filter.skip.copy_(torch.from_numpy(case.skip))  # type: ignore[union-attr]
    projected = torch.from_numpy(case.projected)
    y, state = layer._mix(projected[:, :prompt], None, None)
    outs = [y]
    if prompt == case.y_prefill.shape[1]:
        assert_same("y of the prompt", y, case.y_prefill, STRIPED_HYENA_FLOAT32)
        assert_same("conv", state.conv, case.conv, STRIPED_HYENA_FLOAT32)
        assert_same("modes", state.modes, case.modes, STRIPED_HYENA_FLOAT32)
    for t in range(prompt, projected.shape[1]):
        y, state = layer._mix(projected[:, t, None], state, None)
        outs.append(y)
    whole = torch.cat(outs, 1)
    assert_same("y", whole, case.y, STRIPED_HYENA_FLOAT32)
    assert_same("y decoded", whole[:, -case.y_decode.shape[1] :], case.y_decode, STRIPED_HYENA_FLOAT32)


def test_no_golden_file_is_forgotten():
    names = {path.stem for path in golden_hyena.golden.directory().glob("hyena_*.npz")}
    op = {path.stem for path in golden_hyena.golden.directory().glob(f"{golden_hyena.OF_THE_OP}.npz")}
    ours = {*golden_hyena.OPERATORS, *golden_hyena.LANGUAGE_MODELS, *golden_hyena.MODAL}
    assert names - op - ours == set()
    assert ours - names <= golden_hyena.NOT_SHIPPED <= ours

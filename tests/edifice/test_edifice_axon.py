"""Weights by Axon's names, into a model and out of it: all or nothing."""

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from longstream.edifice import hgrn, hyena, load_axon, save_axon
from longstream.models import Backbone, HGRN2Config, ModelConfig
from tests.edifice import plain

HGRN = {"embed_dim": 5, "hidden_size": 8, "num_layers": 2}
HYENA = {"embed_dim": 5, "hidden_size": 8, "num_layers": 2, "order": 3, "filter_size": 6, "seq_len": 9}
MAKES = {
    "hgrn": lambda: hgrn.build(**HGRN),
    "hgrn without a projection": lambda: hgrn.build(**{**HGRN, "embed_dim": 8}),
    "hgrn backbone": lambda: hgrn.HGRNBackbone(8, num_layers=2),
    "hgrn block": lambda: hgrn.build_hgrn_block(hidden_size=8, layer_idx=2, name="mine"),
    "hgrn layer": lambda: hgrn.build_hgrn_layer(hidden_size=8),
    "hyena": lambda: hyena.build(**HYENA),
    "hyena block": lambda: hyena.build_hyena_block(hidden_size=8, order=1, filter_size=6, seq_len=9, name="b"),
}


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def arrays_of(model) -> dict[str, Any]:
    return {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in plain.parameters(model).items()}


@pytest.mark.parametrize("name", MAKES)
def test_there_and_back(name, tmp_path):
    torch.manual_seed(0)
    model, other = plain.shake(MAKES[name]()).float(), MAKES[name]()
    assert not same_weights(model, other)
    save_axon(model, tmp_path / "w.safetensors")
    written = load_file(tmp_path / "w.safetensors")
    assert written.keys() == plain.parameters(model).keys()
    assert all(np.array_equal(written[name], array) for name, array in arrays_of(model).items())
    load_axon(other, tmp_path / "w.safetensors")
    assert same_weights(model, other)


def test_the_names_are_edifices():
    """Spelled out: a few of each kind."""
    names = plain.parameters(hgrn.build(**HGRN)).keys() | plain.parameters(hyena.build(**HYENA)).keys()
    assert names >= {
        "input_projection/kernel",
        "hgrn_block_1_rnn_norm/gamma",
        "hgrn_block_2_rnn_forget_proj/kernel",
        "hgrn_block_2_ffn_down/bias",
        "hyena_block_1_short_dw_conv/kernel",
        "hyena_block_2_filter2_dense3/bias",
        "hyena_block_2_ffn_gate/kernel",
        "final_norm/beta",
    }
    assert "mine_rnn_contract/kernel" in plain.parameters(MAKES["hgrn block"]())


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("divider", ["/", "."])
def test_files_of_both_kinds_with_slashes_or_dots(divider, suffix, tmp_path):
    model, other = plain.shake(MAKES["hyena"]()).float(), MAKES["hyena"]()
    arrays = {name.replace("/", divider): array for name, array in arrays_of(model).items()}
    arrays["__x"] = np.zeros(3, dtype=np.float32)
    path = tmp_path / f"w{suffix}"
    savez(path, arrays) if suffix == ".npz" else save_file(arrays, path)
    load_axon(other, path)
    assert same_weights(model, other)


def savez(path, arrays: dict[str, Any]):
    np.savez(path, **arrays)


def refused(arrays, says, tmp_path, name="hgrn"):
    """Loading raises, in these words, and the model is as it was."""
    torch.manual_seed(0)
    model = MAKES[name]()
    before = [p.detach().clone() for p in model.parameters()]
    savez(tmp_path / "w.npz", arrays)
    with pytest.raises(ValueError, match=says):
        load_axon(model, tmp_path / "w.npz")
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_missing_and_spare_parameters_are_named(tmp_path):
    arrays = arrays_of(plain.shake(MAKES["hgrn"]()))
    arrays["extra/kernel"] = arrays.pop("final_norm/gamma")
    del arrays["hgrn_block_1_ffn_up/bias"]
    says = "w.npz does not fit, and nothing was loaded: missing final_norm/gamma, hgrn_block_1_ffn_up/bias; "
    refused(arrays, says + "not of this model extra/kernel$", tmp_path)


def test_weights_of_more_layers_do_not_fit(tmp_path):
    refused(arrays_of(hgrn.build(**{**HGRN, "num_layers": 3})), "not of this model hgrn_block_3_", tmp_path)


def test_wrong_shapes_are_named(tmp_path):
    arrays = arrays_of(plain.shake(MAKES["hgrn"]()))
    arrays["hgrn_block_2_rnn_contract/kernel"] = arrays["hgrn_block_2_rnn_contract/kernel"].T
    says = r"hgrn_block_2_rnn_contract/kernel must have shape \(16, 8\), got \(8, 16\)"
    refused(arrays, says, tmp_path)
    arrays = arrays_of(plain.shake(MAKES["hyena"]()))
    arrays["hyena_block_1_short_dw_conv/kernel"] = arrays["hyena_block_1_short_dw_conv/kernel"].squeeze(1)
    refused(arrays, r"short_dw_conv/kernel must have shape \(3, 1, 8\), got \(3, 8\)", tmp_path, "hyena")


def test_integers_are_no_weights(tmp_path):
    arrays = arrays_of(plain.shake(MAKES["hgrn"]()))
    arrays["final_norm/beta"] = np.zeros(8, dtype=np.int64)
    refused(arrays, "final_norm/beta must be floating point, got torch.int64", tmp_path)


def test_the_same_parameter_twice(tmp_path):
    arrays = arrays_of(plain.shake(MAKES["hgrn"]()))
    arrays["final_norm.beta"] = arrays["final_norm/beta"]
    refused(arrays, "has final_norm/beta twice", tmp_path)


def test_pickled_arrays_are_not_read(tmp_path):
    refused({"final_norm/beta": np.array([print], dtype=object)}, "w.npz is damaged or of another kind", tmp_path)


def test_files_that_are_none(tmp_path):
    model = MAKES["hgrn"]()
    with pytest.raises(FileNotFoundError, match=r"load_axon: no file .*nothing.npz"):
        load_axon(model, tmp_path / "nothing.npz")
    for name in ("w.npz", "w.safetensors"):
        (tmp_path / name).write_bytes(b"not a file of tensors")
        with pytest.raises(ValueError, match=f"{name} is damaged or of another kind"):
            load_axon(model, tmp_path / name)
        save_axon(model, tmp_path / "whole.safetensors", overwrite=True)
    whole = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.safetensors is damaged"):
        load_axon(model, tmp_path / "cut.safetensors")
    np.savez_compressed(tmp_path / "whole.npz", **arrays_of(plain.shake(model)))
    whole = (tmp_path / "whole.npz").read_bytes()
    spoiled = bytearray(whole)
    spoiled[len(whole) // 2] ^= 255
    for name, data in {"cut": whole[: len(whole) // 2], "spoiled": bytes(spoiled), "junk": b"no archive"}.items():
        (tmp_path / f"{name}.npz").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}.npz is damaged or of another kind: (?!.*pickle)"):
            load_axon(model, tmp_path / f"{name}.npz")
    (tmp_path / "w.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"path must end in .npz or .safetensors, got .*w.bin"):
        load_axon(model, tmp_path / "w.bin")


def test_nothing_is_overwritten_unasked(tmp_path):
    model, path = MAKES["hgrn"](), tmp_path / "w.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        save_axon(model, path)
    assert path.read_bytes() == b"precious"
    save_axon(model, path, overwrite=True)
    load_axon(model, path)
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_where_nothing_can_be_written(tmp_path):
    model = MAKES["hgrn"]()
    with pytest.raises(FileNotFoundError, match="save_axon: no directory"):
        save_axon(model, tmp_path / "no" / "w.safetensors")
    with pytest.raises(ValueError, match=r"path must end in .safetensors, got .*w.npz"):
        save_axon(model, tmp_path / "w.npz")


def test_a_model_of_another_kind(tmp_path):
    other = Backbone(ModelConfig(hidden_size=8, num_layers=1, mixer=HGRN2Config(expand_ratio=4)))
    with pytest.raises(TypeError, match=r"load_axon: model must be one of longstream.edifice's, got Backbone"):
        load_axon(other, tmp_path / "w.npz")
    with pytest.raises(TypeError, match=r"save_axon: model must be one of longstream.edifice's, got Linear"):
        save_axon(torch.nn.Linear(2, 2), tmp_path / "w.safetensors")

"""A model of sequences: every way of feeding gives the same numbers; missing values, units, files, refusals."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from longstream.layers.state import NoState
from longstream.models import State
from longstream.sequences import SequenceConfig, SequenceModel, Sequences, make_model
from longstream.testing import assert_equivalent
from tests.sequences.small import CAUSAL, SIZES, small_batch, small_data, small_model


class AsMixer(nn.Module):
    """A forecaster under the surface that `assert_equivalent` expects: packed rows become padded ones."""

    def __init__(self, model: SequenceModel):
        super().__init__()
        self.model = model

    def forward(self, x, state=None, *, mask=None, cu_seqlens=None):
        if cu_seqlens is not None:
            lengths = cu_seqlens.diff()
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            padded = x.new_full((*mask.shape, x.shape[-1]), float("nan"))
            padded[mask] = x[0]
            out = self.model(padded, mask.long(), state=state)
            return out.prediction[mask].flatten(1)[None], out.state
        out = self.model(x, mask, state=state)
        return out.prediction.flatten(2), out.state

    def step(self, x_t, state=None):
        out, state = self.model.step(x_t, state)
        assert out.prediction is not None
        return out.prediction.flatten(1), state


@pytest.mark.parametrize("name", ["gru", *(pytest.param(n, marks=pytest.mark.slow) for n in CAUSAL if n != "gru")])
def test_forecasts_honor_the_equivalence_contract(name):
    data = small_data()
    data.values[0][1, 2] = np.nan  # an indicator for "c"
    model = small_model(name, data, "forecast", seq_len=32, options={"dropout": 0.0}).double()

    def frames(T: int) -> torch.Tensor:
        return torch.randn(T, 3, dtype=torch.float64) * 4 + 1

    assert_equivalent(AsMixer(model), frames, lengths=(0, 1, 9))


@pytest.mark.parametrize(
    ("name", "task", "pooling"),
    [*((name, "classify", "mean") for name in CAUSAL), ("hgrn2", "regress", "mean"), ("hyena", "classify", "last")],
)
def test_one_answer_by_every_way_of_feeding(name, task, pooling):
    data = small_data()
    model = small_model(name, data, task, pooling=pooling)
    rows = [torch.from_numpy(value) for value in data.values[:4]]
    key = "logits" if task == "classify" else "prediction"
    with torch.no_grad():
        alone = [model(row[None]) for row in rows]
        width = max(len(row) for row in rows) + 2
        for side in ("left", "right"):
            padded = torch.full((4, width, 3), float("nan"))
            mask = torch.zeros(4, width, dtype=torch.long)
            for i, row in enumerate(rows):
                place = slice(width - len(row), None) if side == "left" else slice(0, len(row))
                padded[i, place], mask[i, place] = row, 1
            batch = model(padded, mask)
            for i, one in enumerate(alone):
                torch.testing.assert_close(batch[key][i], one[key][0], rtol=1e-4, atol=1e-5, msg=side)
                torch.testing.assert_close(
                    batch.state.select([i]).layers[-1], one.state.layers[-1], rtol=1e-4, atol=1e-5
                )
        for row, one in zip(rows, alone, strict=True):
            half = model(row[None, : len(row) // 2])
            rest = model(row[None, len(row) // 2 :], state=half.state)
            torch.testing.assert_close(rest[key], one[key], rtol=1e-4, atol=1e-5)
            out, state = one, model.init_state(1)
            for t in range(len(row)):
                out, state = model.step(row[None, t], state)
            torch.testing.assert_close(out[key], one[key], rtol=1e-4, atol=1e-5)
            assert state.position.tolist() == [len(row)]


def test_a_piece_without_frames_changes_nothing():
    model = small_model(pooling="last")
    x = torch.from_numpy(small_data().values[0])[None]
    whole = model(x)
    after = model(x[:, :0], state=whole.state)
    torch.testing.assert_close(after.logits, whole.logits)
    masked = model(torch.full((1, 2, 3), float("nan")), torch.zeros(1, 2), state=whole.state)
    torch.testing.assert_close(masked.logits, whole.logits)


def test_the_gradient_of_a_padded_batch_is_that_of_its_rows():
    data = small_data(4)
    model = small_model("hgrn2", data)
    batch = small_batch(model, data, [0, 1, 2, 3])
    assert "mask" in batch
    model(**batch).loss.backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for row in range(4):
        (model(**small_batch(model, data, [row])).loss / 4).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(together[name], p.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_inputs_are_normalized_over_what_is_there():
    data = small_data(30)
    data.values[3][:, 1] = np.nan
    data.values[4][2, 1] = np.nan
    model = small_model(data=data)
    frames = np.concatenate(data.values)
    np.testing.assert_allclose(model.mean, np.nanmean(frames, axis=0), rtol=1e-5)
    np.testing.assert_allclose(model.std, np.nanstd(frames, axis=0), rtol=1e-5)
    assert model.config.indicators == [1]
    seen = []
    model.features.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.from_numpy(frames[None]))
    z = seen[0][0].numpy()
    missing = np.isnan(frames[:, 1])
    assert (z[missing, 1] == 0).all()
    assert (z[:, 3] == ~missing).all()  # the indicator
    np.testing.assert_allclose(z[:, [0, 2]].mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(z[:, [0, 2]].std(0), 1, atol=1e-4)


def test_missing_is_not_the_mean():
    data = small_data()
    data.values[0][2, 0] = np.nan
    model = small_model(data=data)
    values = torch.from_numpy(data.values[1])[None].clone()
    values[0, 1, 0] = model.mean[0]  # enters as 0, as a missing one does
    there = model(values).logits
    values[0, 1, 0] = float("nan")
    assert not torch.allclose(there, model(values).logits, atol=1e-3)


def test_a_channel_that_does_not_vary_has_scale_one():
    data = small_data()
    for value in data.values:
        value[:, 2] = 1e6
    model = small_model(data=data)
    assert model.std[2] == 1
    assert model(torch.from_numpy(data.values[0])[None]).logits.isfinite().all()


def test_answers_are_in_the_units_of_the_data():
    data = small_data(40)
    model = small_model("hgrn", data, "regress")
    nn.init.zeros_(model.head.weight)
    out = model(torch.from_numpy(data.values[0])[None])
    np.testing.assert_allclose(out.prediction[0].detach(), data.targets.mean(0), rtol=1e-5)  # type: ignore[union-attr]
    forecaster = small_model("hgrn", data, "forecast", target_channels=["c", "a"])
    nn.init.zeros_(forecaster.head.weight)
    forecast = forecaster(torch.from_numpy(data.values[0])[None]).prediction[0]
    assert forecast.shape == (len(data.values[0]), 3, 2)
    for ahead in range(3):  # the last frame, where the head says nothing
        np.testing.assert_allclose(forecast[:, ahead].detach(), data.values[0][:, [2, 0]], rtol=1e-4, atol=1e-4)
    forecaster.config.residual = False
    mean = forecaster(torch.from_numpy(data.values[0])[None]).prediction[0, 0, 0]
    np.testing.assert_allclose(mean.detach(), model.mean[[2, 0]], rtol=1e-5)


def test_the_loss_of_a_forecast_is_the_error_of_what_follows():
    data = small_data(3, least=12)
    data.values[1][6:8, 0] = np.nan
    model = small_model(data=data, task="forecast", target_channels=["a", "b"])
    for row in range(3):
        value = data.values[row]
        out = model(torch.from_numpy(value)[None, :8], targets=torch.from_numpy(value)[None, 1:11, :2])
        errors = []
        for t in range(8):
            for ahead in range(1, 4):
                for k in range(2):
                    if not np.isnan(value[t + ahead, k]):
                        error = out.prediction[0, t, ahead - 1, k] - value[t + ahead, k]
                        errors.append(abs(error.item()) / model.std[k].item())
        assert out.loss.item() == pytest.approx(np.mean(errors), rel=1e-4)


def test_unknown_targets_are_left_out_of_the_loss():
    data = small_data(6)
    assert data.targets is not None
    model = small_model(data=data, task="regress")
    batch = small_batch(model, data, [0, 1])
    batch["targets"][0, 1] = float("nan")
    out = model(**batch)
    errors = ((out.prediction - batch["targets"]) / model.target_std).square()
    assert out.loss.item() == pytest.approx(errors[~errors.isnan()].mean().item(), rel=1e-5)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    batch["targets"][:] = float("nan")
    assert model(**batch).loss == 0


def test_weights_are_shares_of_the_loss():
    data = small_data(4)
    model = small_model(data=data)
    batch = small_batch(model, data, [0, 1, 2])
    weights = torch.tensor([1.0, 0.0, 3.0])
    expected = nn.functional.cross_entropy(
        model(batch["values"], batch.get("mask")).logits, batch["labels"], reduction="none"
    )
    assert model(**batch, weights=weights).loss.item() == pytest.approx((expected * weights).sum().item() / 4, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "direction"),
    [("hgrn", "2d"), ("hgrn2", "2d_parallel"), ("hgrn2", "2d_series")],
)
def test_images_as_grids(name, direction):
    random = np.random.default_rng(0)
    data = Sequences(list(random.normal(size=(6, 5, 4, 2)).astype(np.float32)), labels=np.array(list("aabbab")))
    model = small_model(name, data, options={"direction": direction})
    batch = small_batch(model, data, [0, 1, 2])
    assert set(batch) == {"values", "labels"}
    out = model(**batch)
    out.loss.backward()
    assert out.hidden.shape == (3, 5, 4, 16)
    assert out.state is None
    torch.testing.assert_close(out.logits[:1], model(batch["values"][:1]).logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.logits, model.head(out.hidden.mean((1, 2))), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="takes whole sequences"):
        model.step(batch["values"][:, 0, 0])
    with pytest.raises(ValueError, match="takes whole sequences"):
        model(batch["values"], state=small_model().init_state(3))


def test_both_directions_on_padded_series():
    data = small_data()
    model = small_model("hgrn2", data, options={"direction": "bidirectional"})
    batch = small_batch(model, data, [0, 1, 2, 3])
    logits = model(batch["values"], batch["mask"]).logits
    for row in range(4):
        alone = model(torch.from_numpy(data.values[row])[None])
        torch.testing.assert_close(logits[row], alone.logits[0], rtol=1e-4, atol=1e-5)
        assert alone.state is None
    assert isinstance(model.features(torch.zeros(1, 2, 3))[1].layers[0], NoState)


@pytest.mark.parametrize("name", ["llama", "mamba2"])
def test_a_baseline_without_a_state(name):
    data = small_data(4)
    model = small_model(name, data, options={})
    batch = small_batch(model, data, [0, 1, 2])
    logits = model(batch["values"], batch["mask"]).logits
    for row in range(3):
        torch.testing.assert_close(
            logits[row], model(torch.from_numpy(data.values[row])[None]).logits[0], rtol=1e-4, atol=1e-5
        )
    with pytest.raises(RuntimeError, match="does not have"):
        model.step(batch["values"][:, 0])
    with pytest.raises(RuntimeError, match="does not have"):
        model.init_state(1)


@pytest.mark.parametrize("name", [*CAUSAL, "llama"])
def test_saved_and_loaded_it_says_the_same(tmp_path, name):
    data = small_data()
    data.values[0][0, 0] = np.nan
    model = small_model(name, data, "regress")
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = SequenceModel.from_pretrained(tmp_path)
    assert not loaded.training
    assert loaded.config.channels == ["a", "b", "c"]
    assert loaded.config.target_names == ["small", "large"]
    batch = small_batch(model, data, [0, 1, 2])
    torch.testing.assert_close(loaded(**batch).prediction, model(**batch).prediction, rtol=0, atol=0)
    from transformers import AutoConfig, AutoModel

    assert isinstance(AutoConfig.from_pretrained(tmp_path), SequenceConfig)
    assert isinstance(AutoModel.from_pretrained(tmp_path), SequenceModel)


def test_a_state_is_saved_and_goes_on(tmp_path):
    model, x = small_model(pooling="mean"), torch.from_numpy(small_data().values[0])[None]
    model(x[:, :3]).state.save(tmp_path / "state.safetensors")
    rest = model(x[:, 3:], state=State.load(tmp_path / "state.safetensors"))
    torch.testing.assert_close(rest.logits, model(x).logits, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="belongs to another model"):
        small_model("hgrn")(x, state=State.load(tmp_path / "state.safetensors"))
    with pytest.raises(ValueError, match="belongs to another model"):
        small_model(pooling="last")(x, state=State.load(tmp_path / "state.safetensors"))


def test_a_file_that_does_not_fit_is_refused_with_all_names(tmp_path):
    from safetensors.torch import load_file, save_file

    small_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["head.bias"], tensors["mean"]
    tensors |= {"extra": torch.zeros(1), "std": torch.ones(5)}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"2 missing: head.bias, mean; 1 spare: extra; 1 misshapen: std \(5,\), not \(3,\)"
    ):
        SequenceModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ValueError, match="cut short or damaged"):
        SequenceModel.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"model\.safetensors"):
        SequenceModel.from_pretrained(tmp_path)
    with pytest.raises(OSError, match="Without a network"):
        SequenceModel.from_pretrained("nobody/has-this-model")
    with pytest.raises(TypeError, match="unknown arguments"):
        SequenceModel.from_pretrained(tmp_path, hidden=3)


def test_half_precision_keeps_the_scale():
    data = small_data(20, scale=100.0)
    model = small_model(data=data)
    exact = model(torch.from_numpy(data.values[0])[None]).logits
    half = small_model(data=data).bfloat16()
    assert half.mean.dtype == torch.float32
    assert torch.equal(half.mean, model.mean)
    got = half(torch.from_numpy(data.values[0])[None]).logits
    torch.testing.assert_close(got.float(), exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.index_fill_(1, torch.tensor([2]), float("nan")), r"must not be missing \(NaN\).*'a', 'b', 'c'"),
        (lambda x: x[:, 2].fill_(float("inf")), "must not be infinite"),
    ],
)
def test_values_it_cannot_take(change, message):
    model, x = small_model(), torch.from_numpy(small_data().values[0])[None].clone()
    change(x)
    with pytest.raises(ValueError, match=message):
        model(x)
    mask = torch.ones(1, x.shape[1])
    mask[0, 2] = 0
    assert model(x, mask).logits.isfinite().all()  # on a pad it is as if not there


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": torch.zeros(2, 5, 4)}, "C=3"),
        ({"values": torch.zeros(2, 5)}, "values must have shape"),
        ({"values": torch.zeros(2, 5, 3), "labels": torch.zeros(3, dtype=torch.long)}, r"labels must be integers.*B=2"),
        ({"values": torch.zeros(2, 5, 3), "labels": torch.zeros(2)}, "labels must be integers"),
    ],
)
def test_shapes_that_disagree(arguments, message):
    with pytest.raises(ValueError, match=message):
        small_model()(**arguments)


@pytest.mark.parametrize(
    ("name", "task", "more", "message"),
    [
        ("hgrn3", "classify", {}, "name must be one of"),
        ("hgrn2", "rank", {}, "task must be one of"),
        ("hgrn2", "classify", {"pooling": "max"}, "pooling must be one of"),
        ("hgrn2", "forecast", {"target_channels": ["z"]}, "target_channels must be of"),
        ("hgrn2", "forecast", {"horizon": 0}, "horizon must be >= 1"),
        ("hgrn2", "forecast", {"options": {"direction": "bidirectional"}}, "needs a causal network"),
        ("hgrn2", "classify", {"options": {"direction": "bidirectional"}, "pooling": "last"}, "pooling must be 'mean'"),
        ("hgrn2", "classify", {"options": {"direction": "2d_parallel"}}, "data are series"),
        ("hgrn2", "classify", {"options": {"hidden_sise": 3}}, "hidden_size"),
    ],
)
def test_models_that_make_no_sense(name, task, more, message):
    options = {**SIZES, **more.pop("options", {})}
    with pytest.raises((ValueError, TypeError), match=message):
        make_model(name, small_data(), task=task, options=options, **more)


def test_data_without_what_the_task_needs():
    bare = Sequences(small_data().values)
    for task, what in (("classify", "labels"), ("regress", "targets")):
        with pytest.raises(ValueError, match=f"must have {what}"):
            make_model("hgrn", bare, task=task)
    one = Sequences(bare.values, labels=np.array(["a"] * len(bare)))
    with pytest.raises(ValueError, match="two classes or more, got only 'a'"):
        make_model("hgrn", one, task="classify")


def test_a_forecaster_takes_hyenas_length_from_its_windows(tmp_path):
    data = small_data(most=60, least=50)
    model = make_model("hyena", data, task="forecast", seq_len=16, options=SIZES)
    assert model.max_frames == model.window == 16
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["options"]["window_size"] == 16
    with pytest.raises(ValueError, match="16"):
        model(torch.from_numpy(data.values[0])[None])

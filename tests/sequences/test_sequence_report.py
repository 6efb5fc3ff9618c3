"""The held-out report: figures by hand, forecasts at every origin by hand, pages and pictures."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as theirs

from longstream.sequences import SequenceModel, Sequences, evaluate, forecast_at, predict
from tests.sequences.small import small_data, small_model

PNG = b"\x89PNG"


def answers(model: SequenceModel, data: Sequences) -> torch.Tensor:
    key = "logits" if model.config.task == "classify" else "prediction"
    with torch.no_grad():
        return torch.cat([model(torch.from_numpy(value)[None])[key] for value in data.values])


@pytest.mark.parametrize("chunk", [0, 6])
@pytest.mark.parametrize("task", ["classify", "regress"])
def test_predictions_are_in_the_order_given(task, chunk):
    data = small_data(10)
    model = small_model("hgrn2", data, task).train()
    found = predict(model, data.values, batch_size=4, chunk=chunk)
    assert model.training  # as before
    np.testing.assert_allclose(found, answers(model.eval(), data), rtol=1e-4, atol=1e-4)


def test_a_report_on_classes():
    data = small_data(30)
    model = small_model(data=data)
    report = evaluate(model, data, batch_size=7)
    logits = answers(model, data)
    true = torch.tensor([model.config.classes.index(label) for label in data.labels.tolist()])  # type: ignore[union-attr]
    assert report.score_name == "accuracy"
    assert report.score == report.metrics["accuracy"] == pytest.approx(theirs.accuracy_score(true, logits.argmax(1)))
    assert report.loss == pytest.approx(F.cross_entropy(logits, true).item(), rel=1e-4)
    assert report.metrics["confusion"] == theirs.confusion_matrix(true, logits.argmax(1)).tolist()
    assert "| class 0 |" in report.to_markdown()
    assert json.loads(report.to_json())["macro_f1"] == report.metrics["macro_f1"]


def test_a_report_on_numbers():
    data = small_data(20)
    assert data.targets is not None
    data.targets[3, 0] = np.nan
    model = small_model("gru", data, "regress")
    report = evaluate(model, data)
    found = answers(model, data).numpy()
    known = np.arange(20) != 3
    assert report.metrics["targets"]["small"]["r2"] == pytest.approx(
        theirs.r2_score(data.targets[known, 0], found[known, 0]), rel=1e-4
    )
    assert report.score == report.metrics["r2"]
    scaled = (found - data.targets) / model.target_std.numpy()
    assert report.loss == pytest.approx(np.nanmean(scaled**2), rel=1e-4)


@pytest.mark.parametrize("name", ["hgrn2", "hyena", "llama"])
@pytest.mark.parametrize("piece", [4096, 7])
def test_a_forecast_knows_all_frames_up_to_its_origin(name, piece):
    data = small_data(3, least=10, most=40)
    model = small_model(name, data, "forecast", seq_len=60)
    origins = [np.array([0, 4, 9]), np.arange(len(data.values[1])), np.array([], dtype=int)]
    found = forecast_at(model, data.values, origins, batch_size=2, piece=piece)
    assert [len(part) for part in found] == [3, len(data.values[1]), 0]
    with torch.no_grad():
        for value, places, part in zip(data.values, origins, found, strict=True):
            for place, forecast in zip(places, part, strict=True):
                alone = model(torch.from_numpy(value[: place + 1])[None]).prediction[0, -1]
                np.testing.assert_allclose(forecast, alone, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["hyena", "llama"])
def test_a_limited_forecaster_has_half_a_window_behind_each_origin(name):
    data = small_data(1, least=50, most=50)
    model = small_model(name, data, "forecast", seq_len=12)
    assert model.window == 12
    origins = np.array([2, 3, 20, 21, 22, 30, 48])
    (found,) = forecast_at(model, data.values, [origins])
    value = torch.from_numpy(data.values[0])
    with torch.no_grad():
        for place, forecast in zip(origins.tolist(), found, strict=True):
            past = [
                model(value[None, first : place + 1]).prediction[0, -1].numpy()
                for first in range(max(0, place - 11), place + 1)
            ]
            fits = [np.allclose(forecast, one, rtol=1e-3, atol=1e-3) for one in past]
            assert any(fits)
            assert len(past) - fits.index(True) >= min(place + 1, 7)  # frames seen


def test_a_report_on_forecasts_by_hand():
    random = np.random.default_rng(0)
    season, starts, stride = 4, [20, 31], 3
    values = [
        (np.sin(np.arange(T)[:, None] * np.pi / 2 + [0, 1]) * [1, 50] + random.normal(size=(T, 2))).astype(np.float32)
        for T in (40, 50)
    ]
    values[0][25, 0] = np.nan
    data = Sequences(values, channels=("a", "b"))
    model = small_model("hgrn", data, "forecast", horizon=3)
    report = evaluate(model, data, stride=stride, season=season, start=starts)
    errors: dict[str, list[float]] = {"model": [], "naive": [], "seasonal_naive": []}
    scaled, by_horizon = [], [[], [], []]
    for value, start in zip(values, starts, strict=True):
        with torch.no_grad():
            forecasts = model(torch.from_numpy(value)[None]).prediction[0].numpy()
        for t in range(start - 1, len(value) - 1, stride):
            for ahead in range(1, 4):
                for k in range(2):
                    if t + ahead >= len(value) or np.isnan(value[t + ahead, k]):
                        continue
                    last = t - 1 if np.isnan(value[t, k]) else t
                    past = t + ahead - season
                    past = past - season if np.isnan(value[past, k]) else past
                    error = abs(forecasts[t, ahead - 1, k] - value[t + ahead, k])
                    errors["model"].append(error)
                    errors["naive"].append(abs(value[last, k] - value[t + ahead, k]))
                    errors["seasonal_naive"].append(abs(value[past, k] - value[t + ahead, k]))
                    steps = np.abs(value[season:start, k] - value[: start - season, k])
                    scaled.append(error / np.nanmean(steps))
                    by_horizon[ahead - 1].append(error)
    for name, row in report.metrics["errors"].items():
        assert row["mae"] == pytest.approx(np.mean(errors[name]), rel=1e-4)
        assert row["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(errors[name]))), rel=1e-4)
    assert report.metrics["mase"] == pytest.approx(np.mean(scaled), rel=1e-4)
    assert report.metrics["by_horizon"]["model"]["mae"] == pytest.approx(
        [np.mean(part) for part in by_horizon], rel=1e-4
    )
    assert report.metrics["mae"] == report.metrics["errors"]["model"]["mae"]
    assert report.score == -report.loss == -report.metrics["scaled_mae"]
    assert report.metrics["origins"] == 7 + 7
    assert "last season (4 frames)" in report.to_markdown()


def test_the_past_of_a_held_out_end_counts():
    data = small_data(1, least=60, most=60, channels=1)
    model = small_model("hgrn2", data, "forecast")
    whole = evaluate(model, data, start=50).metrics["mae"]
    alone = evaluate(model, Sequences([data.values[0][50:]], channels=data.channels), start=1).metrics["mae"]
    assert whole != pytest.approx(alone, rel=1e-6)
    assert evaluate(model, data, start=0).to_json() == evaluate(model, data).to_json()
    assert evaluate(model, data).metrics["mase"] > 0


@pytest.mark.parametrize("task", ["classify", "regress", "forecast"])
def test_pictures_are_files_and_nothing_else_is_left(tmp_path, task):
    data = small_data(30)
    report = evaluate(small_model("hgrn", data, task), data)
    paths = report.draw(tmp_path)
    assert paths == sorted(tmp_path.iterdir(), key=paths.index)
    assert all(path.read_bytes().startswith(PNG) for path in paths)
    names = {
        "classify": ["confusion.png"],
        "regress": ["regression.png"],
        "forecast": ["horizons.png", "forecasts.png"],
    }
    assert [path.name for path in paths] == names[task]


def test_json_has_no_nan():
    data = small_data(4, least=3, most=5)
    report = evaluate(small_model("hgrn", data, "forecast"), data, start=2, season=2)
    text = report.to_json()
    assert "NaN" not in text
    assert json.loads(text)["mase"] is None  # two frames are no season to compare with


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("forecast", {"start": [3]}, "start must be one frame a series, 12, got 1"),
        ("forecast", {"start": 99}, r"start must lie in \[0, "),
        ("forecast", {"stride": 0}, "stride must be >= 1"),
        ("classify", {"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_arguments_out_of_range(task, arguments, message):
    data = small_data()
    with pytest.raises(ValueError, match=message):
        evaluate(small_model("hgrn", data, task), data, **arguments)


def test_labels_never_seen_in_training_are_named():
    data = small_data()
    with pytest.raises(ValueError, match=r"never seen in training: .*class 3"):
        evaluate(small_model(data=data), small_data(classes=4))

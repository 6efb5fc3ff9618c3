"""weights_report: what smaller weights lose, on data."""

import math

import numpy as np
import pytest
import torch

from longstream.stream import Stream, weights_report
from longstream.stream.program import why_not_native
from tests.stream.streamed import VOCABULARY, E, make, make_frames

pytestmark = pytest.mark.skipif(why_not_native() is not None, reason="needs the native step")


def test_errors_are_those_of_the_streams():
    model = make("hgrn2")
    x = make_frames(model, 2, 30)
    report = weights_report(model, x)
    assert [row.weights for row in report.rows] == ["bfloat16", "int8"]
    exact, rough = (Stream(model, batch_size=2, weights=kind) for kind in ("float32", "int8"))
    right, y = (torch.stack([s.step(x[:, t]) for t in range(30)]).double() for s in (exact, rough))
    assert math.isclose(report["int8"].rms, float((y - right).norm() / right.norm()), rel_tol=1e-9)
    assert math.isclose(report["int8"].most, float((y - right).abs().max() / right.abs().max()), rel_tol=1e-9)
    assert report["int8"].bytes == rough.weight_bytes < report["bfloat16"].bytes < report.bytes == exact.weight_bytes
    assert 0 < report["bfloat16"].rms < 0.02
    assert 0 < report["int8"].rms < 0.05
    assert report["int8"].agreement is None
    lines = str(report).splitlines()
    assert lines[0].split() == ["weights", "bytes", "rms", "error", "largest", "error"]
    assert [line.split()[0] for line in lines[1:4]] == ["float32", "bfloat16", "int8"]
    assert len({len(line) for line in lines[:4]}) == 1
    assert lines[4] == "over 60 frames, frame by frame"
    assert weights_report(model, x.numpy()[0].astype(np.float64)).frames == 30


@torch.no_grad()
def test_a_language_model_also_loses_tokens_and_bits():
    model = make("language")
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # logits that prefer something
    x = make_frames(model, 2, 40)
    report = weights_report(model, x, ["int8"])
    rough = Stream(model, batch_size=2, weights="int8")
    right = model(x)[0].double()
    y = torch.stack([rough.step(x[:, t]) for t in range(40)], dim=1).double()
    row = report["int8"]
    assert row.agreement == pytest.approx(float((y.argmax(-1) == right.argmax(-1)).double().mean()))
    at = x[:, 1:, None]
    lost = (right.log_softmax(-1)[:, :-1].gather(2, at) - y.log_softmax(-1)[:, :-1].gather(2, at)).mean() / math.log(2)
    assert row.bits == pytest.approx(float(lost), abs=1e-5)
    assert "bits per token" in str(report)


def test_what_it_refuses():
    model = make("hgrn2")
    with pytest.raises(ValueError, match=r"weights must be one of .* got 'int4'"):
        weights_report(model, torch.zeros(3, E), ["int4"])
    with pytest.raises(ValueError, match=r"frames must have shape \(T, E\) or \(B, T, E\) with T >= 1, got \(0, 5\)"):
        weights_report(model, torch.zeros(0, E))
    with pytest.raises(RuntimeError, match="cannot run this model"):
        weights_report(model.double(), torch.zeros(3, E))
    with pytest.raises(ValueError, match="must lie in"):
        weights_report(make("language"), torch.tensor([VOCABULARY]))

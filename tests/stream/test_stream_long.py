"""20,000 frames: the stream does not drift from the parallel pass."""

import pytest
import torch

import longstream
from longstream.stream import Stream
from tests.stream.streamed import CLOSE, E, make_stream

T = 20_000
NAMES = [info.name for info in longstream.list_models()]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_mixer_stays_with_the_parallel_pass(name: str):
    window = T if "hyena" in name else 60
    model = longstream.build(name, embed_dim=E, hidden_size=16, num_layers=2, window_size=window).eval()
    x = torch.randn(1, T, E)
    with torch.no_grad():
        wanted, last = model(x, outputs="all")
    stream: Stream = make_stream(model, "native")
    out = torch.empty(T, 1, 16)
    for t in range(T):
        stream.step(x[:, t], out=out[t])
    assert float((out[:, 0] - wanted[0]).abs().max()) <= CLOSE * float(wanted.abs().max())
    assert torch.equal(stream.position, last.position)
    assert [type(layer) for layer in stream.state.layers] == [type(layer) for layer in last.layers]

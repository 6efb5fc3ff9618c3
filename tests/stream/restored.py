"""Another process: loads the states in a folder, goes on from them, and writes down what came out."""

import sys
from pathlib import Path

import torch

from longstream import State
from longstream.stream import Stream
from tests.stream.streamed import make, make_frames

torch.set_num_threads(1)
for path in Path(sys.argv[1]).glob("*.safetensors"):
    name, backend = path.stem.split(".")
    model, state = make(name), State.load(path)
    stream = Stream(model, backend=backend, threads=1, batch_size=state.batch_size, state=state)
    x = make_frames(model, state.batch_size, 60)
    out = [stream.step(x[:, t]) for t in range(int(state.position[0]), 60)]
    torch.save({"out": torch.stack(out), "state": stream.state.tensors()}, path.with_suffix(".pt"))

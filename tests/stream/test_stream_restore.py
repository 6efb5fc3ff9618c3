"""Streams of a long run: killed and restored elsewhere, on several threads, and without taking memory."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from longstream import State
from longstream.stream import Stream
from longstream.stream.program import why_not_native
from tests.stream.streamed import E, both, make, make_frames, make_stream, same

HERE = Path(__file__).parent


@pytest.mark.slow  # a process, which imports torch
def test_another_process_goes_on_bit_for_bit(tmp_path: Path):
    wanted = {}
    for backend in ("eager", "native") if why_not_native() is None else ("eager",):
        for name in ("hgrn", "hgrn2", "hyena", "hybrid", "edifice-hgrn", "edifice-hyena", "modal", "language"):
            model = make(name)
            x = make_frames(model, 2, 60)
            stream = make_stream(model, backend, batch_size=2)
            for t in range(37):
                stream.step(x[:, t])
            stream.state.save(tmp_path / f"{name}.{backend}.safetensors")
            out = torch.stack([stream.step(x[:, t]) for t in range(37, 60)])
            wanted[f"{name}.{backend}.pt"] = out, stream.state
    subprocess.run([sys.executable, "-m", "tests.stream.restored", str(tmp_path)], cwd=HERE.parents[1], check=True)
    for file, (out, state) in wanted.items():
        found = torch.load(tmp_path / file, weights_only=True)
        assert torch.equal(found["out"], out), file
        assert all(torch.equal(a, b) for a, b in zip(found["state"], state.tensors(), strict=True)), file


@pytest.mark.slow  # a process, which imports torch
def test_a_process_that_is_killed_leaves_a_whole_state(tmp_path: Path):
    """It saves after every frame, and is killed at some moment."""
    path = tmp_path / "state.safetensors"
    code = (
        "import sys; from tests.stream.streamed import *\n"
        "model = make('hgrn2'); stream = Stream(model); x = make_frames(model, 1, 60)\n"
        "t = 0\n"
        "while True:\n"
        "    stream.step(x[:, t % 60]); t += 1\n"
        "    stream.state.save(sys.argv[1], overwrite=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=HERE.parents[1])
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    state = State.load(path)
    model = make("hgrn2")
    x, stream = make_frames(model, 1, 60), Stream(model)
    for t in range(int(state.position[0])):
        stream.step(x[:, t % 60])
    assert same(stream.state, state)


@both
@pytest.mark.parametrize("name", ["hybrid", "hyena"])
def test_two_streams_of_one_model_on_two_threads(name: str, backend: str):
    model = make(name)
    x = make_frames(model, 2, 90)
    alone = []
    for row in range(2):
        stream = make_stream(model, backend)
        alone.append(torch.stack([stream.step(x[row, t]) for t in range(90)]))
    streams = [make_stream(model, backend) for _ in range(2)]
    found: list[torch.Tensor | None] = [None, None]

    def run(row: int) -> None:
        found[row] = torch.stack([streams[row].step(x[row, t]) for t in range(90)])

    threads = [threading.Thread(target=run, args=(row,)) for row in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for row in range(2):
        assert found[row] is not None
        assert torch.equal(found[row], alone[row])  # type: ignore[arg-type]


@both
def test_a_second_caller_is_told_so(backend: str):
    stream = make_stream(make("hgrn2"), backend, history=2)
    frame = torch.randn(E)
    stream.step(frame)
    engine, entered, leave = stream._engine, threading.Event(), threading.Event()
    step = engine.step

    def slow(*arguments: object) -> int:
        entered.set()
        leave.wait(20)
        return step(*arguments)  # type: ignore[arg-type]

    engine.step = slow  # type: ignore[method-assign]
    first = threading.Thread(target=stream.step, args=(frame,))
    first.start()
    assert entered.wait(20)
    said = "another call is inside this stream, and one stream is one caller"
    for call in (
        lambda: stream.step(frame),
        lambda: stream.prefill(frame[None]),
        lambda: stream.rollback(1),
        lambda: stream.reset(),
        lambda: stream.state,
        lambda: stream.fork(2),
    ):
        with pytest.raises(RuntimeError, match=said):
            call()
    leave.set()
    first.join()
    assert stream.position.tolist() == [2]
    engine.step = step  # type: ignore[method-assign]
    stream.step(frame)
    stream.rollback(2)
    assert stream.position.tolist() == [1]


def resident() -> int:
    """Bytes of memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["hgrn2", "hybrid"])
def test_a_step_takes_no_memory(name: str):
    model = make(name)
    stream = make_stream(model, "native", batch_size=2, history=10)
    frame, out = torch.randn(2, E), torch.empty(2, 16)
    for _ in range(2000):
        stream.step(frame, out=out)
    before = resident()
    for _ in range(20_000):
        stream.step(frame, out=out)
    assert resident() - before <= 64 * 1024  # a leak of 4 bytes a step would be more
    assert stream.position.tolist() == [22_000] * 2


def test_a_step_calls_no_allocator_of_torch():
    stream = make_stream(make("hgrn2"), "native")
    frame, out = torch.randn(1, E), torch.empty(1, 16)
    stream.step(frame, out=out)
    with torch.profiler.profile(profile_memory=True) as profile:
        for _ in range(20):
            stream.step(frame, out=out)
    taken = {
        event.key: event.self_cpu_memory_usage for event in profile.key_averages() if event.self_cpu_memory_usage > 0
    }
    assert not taken

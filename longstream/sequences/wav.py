"""WAV: sound as one sequence a file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from longstream.sequences.data import Sequences
from longstream.sequences.spec import ReadSpec, Task, check_file, extra, one_line

MU = 255  # of the mu-law, ITU-T G.711


def load_wav(path: Path) -> tuple[int, np.ndarray]:
    """A WAV file: frames a second, and (T, C) float32 in [-1, 1] from PCM of 8 to 64 bits or floats.

    Raises:
        ValueError: another format, damaged, or cut short.
    """
    with extra(f"reading {path.name}"):
        from scipy.io import wavfile
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)
            warnings.filterwarnings("ignore", "Chunk .non-data. not understood", wavfile.WavFileWarning)
            rate, samples = wavfile.read(path)
    except Exception as error:  # in damaged files, scipy also divides by zero and uses names before they are set
        raise ValueError(f"{path} is no WAV that longstream reads, or cut short: {one_line(error)}") from None
    samples = samples[:, None] if samples.ndim == 1 else samples
    if samples.dtype == np.uint8:  # 8 bits are unsigned, 24 bits come in the upper three bytes of 32
        return rate, (samples.astype(np.float32) - 128) / 128
    if samples.dtype.kind == "i":
        return rate, (samples / 2.0 ** (8 * samples.dtype.itemsize - 1)).astype(np.float32)
    return rate, samples.astype(np.float32)


def sampling_rate(path: Path) -> int:
    """Frames a second, from the chunk ``fmt`` of a RIFF file."""
    with open(path, "rb") as stream:
        if stream.read(12)[8:] == b"WAVE":
            while len(head := stream.read(8)) == 8:
                if head[:4] == b"fmt ":
                    return int.from_bytes(stream.read(8)[4:], "little")
                size = int.from_bytes(head[4:], "little")
                stream.seek(size + size % 2, 1)
    return load_wav(path)[0]  # big-endian, or none: scipy says what is wrong


def read_wav(path: Path, spec: ReadSpec, task: Task = "") -> Sequences:
    """One sequence, (T, channels)."""
    _, samples = load_wav(path)
    return Sequences([samples], names=(str(path),))


def mu_law(samples: np.ndarray) -> bytes:
    """Samples in [-1, 1] as 8-bit mu-law codes, 128 for silence; those of several channels interleaved."""
    samples = np.clip(samples.astype(np.float64), -1, 1)
    compressed = np.sign(samples) * np.log1p(MU * np.abs(samples)) / np.log1p(MU)
    return ((compressed + 1) / 2 * MU + 0.5).astype(np.uint8).tobytes()

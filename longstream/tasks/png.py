"""PNG: many small pictures of one kind at once, in NumPy."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

PNG = b"\x89PNG\r\n\x1a\n"


def read_png(files: list[Path]) -> np.ndarray:
    """(N, height, width, channels) uint8 of PNG files of one size, 8 bits a channel, not interlaced.

    Channels are grey; grey and alpha; red, green and blue; or these and alpha.

    Raises:
        FileNotFoundError: one is missing.    ValueError: one is damaged or of another kind or size.
    """
    found = [_inflate(file) for file in files]
    shape = found[0][0]
    for file, (other, _) in zip(files, found, strict=True):
        if other != shape:
            raise ValueError(f"{file} must be of the size and kind of {files[0]}, {shape}, got {other}")
    height, width, channels = shape
    rows = np.stack([np.frombuffer(data, np.uint8).reshape(height, 1 + width * channels) for _, data in found])
    return _unfilter(rows, channels).reshape(len(files), height, width, channels)


def _inflate(file: Path) -> tuple[tuple[int, int, int], bytes]:
    """(height, width, channels) of a PNG file, and its rows with their filters."""
    if not file.is_file():
        raise FileNotFoundError(f"no file {file}")
    data = file.read_bytes()
    if not data.startswith(PNG):
        raise ValueError(f"{file} is no PNG file")
    at, packed, shape = len(PNG), [], (0, 0, 0)
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if data[at + 8 + size : at + 12 + size] != struct.pack(">I", zlib.crc32(kind + body)):
            break
        if kind == b"IHDR" and size != 13:
            break
        if kind == b"IHDR":
            width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            channels = {0: 1, 2: 3, 4: 2, 6: 4}.get(color, 0)
            if depth != 8 or interlaced or not channels:
                raise ValueError(f"{file} must be a PNG of 8 bits a channel without a palette or interlacing")
            shape = (height, width, channels)
        elif kind == b"IDAT":
            packed.append(body)
        elif kind == b"IEND":
            try:
                rows = zlib.decompress(b"".join(packed))
            except zlib.error:
                break
            if len(rows) == shape[0] * (1 + shape[1] * shape[2]):
                return shape, rows
            break
        at += 12 + size
    raise ValueError(f"{file} is damaged or cut short")


def _unfilter(rows: np.ndarray, channels: int) -> np.ndarray:
    """(N, height, width x channels) uint8 from rows with a filter's number in front; pixel by pixel for all at once."""
    count, height, width = rows.shape
    if (rows[:, :, 0] > 4).any():
        raise ValueError("read_png: a row has a filter that PNG does not know: the file is damaged")
    kinds, filtered = rows[:, :, 0], rows[:, :, 1:].astype(np.int32)
    out = np.zeros((count, height + 1, width - 1 + channels), np.int32)  # a row above and a pixel before are zero
    for y in range(height):
        kind = kinds[:, y]
        for x in range(width - 1):
            left, up, corner = out[:, y + 1, x], out[:, y, x + channels], out[:, y, x]
            guess = left + up - corner
            near_left, near_up, near_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
            paeth = np.where(
                (near_left <= near_up) & (near_left <= near_corner), left, np.where(near_up <= near_corner, up, corner)
            )
            before = np.select([kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) // 2, paeth], 0)
            out[:, y + 1, x + channels] = (filtered[:, y, x] + before) & 255
    return out[:, 1:, channels:].astype(np.uint8)

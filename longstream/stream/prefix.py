"""States of what texts begin with, kept in memory and in files, so that it is read once."""

import hashlib
import logging
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from longstream.models import LanguageModel, State
from longstream.models.generate import read_prompts
from longstream.stream.kept import Watch, as_language_model
from longstream.stream.steps import Steps

logger = logging.getLogger(__name__)

MEMORY = 2**30  # bytes of states in memory unless told
DISK = 8 * 2**30  # and in a directory


class PrefixCache:
    """States after the beginnings of texts, by the tokens of these and by the model.

    What is asked for again is found; of what is longer only the rest is read. States that have not been used for
    longest leave first. Found are only states of just these tokens and weights: the names of files are hashes of both,
    and what was read from a file is checked. Several processes may share a directory: files are written beside and
    renamed, and another process may remove one at any time.

    Args:
        model:        `longstream.models.LanguageModel`, or a causal language model of longstream.hf.
        memory_bytes: of states kept in memory; 0 keeps none.
        directory:    where states are also written, in a folder of this model's; None writes none.
        disk_bytes:   of the files in that folder.
    Raises:
        ValueError: a negative number of bytes.    RuntimeError: a layer is not causal.

    Attributes:
        hits, misses: how often the whole of what was asked for was there, or not.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        memory_bytes: int = MEMORY,
        directory: str | os.PathLike[str] | None = None,
        disk_bytes: int = DISK,
    ):
        for name, value in (("memory_bytes", memory_bytes), ("disk_bytes", disk_bytes)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"PrefixCache: {name} must be an integer >= 0, got {value!r}")
        self._source = model
        self.memory_bytes, self.disk_bytes = memory_bytes, disk_bytes
        self.directory = None if directory is None else Path(directory)
        self.hits = self.misses = 0
        self._lock = threading.RLock()
        self._states: OrderedDict[tuple[int, str], State] = OrderedDict()
        self._look_at_weights()

    def state_of(self, ids: Sequence[int] | Tensor) -> State:
        """The state of one row after these tokens, one or more; it is kept, and must not be changed in place.

        Raises:
            ValueError: no tokens, or not of the vocabulary, or more than the model takes.
        """
        with self._lock:
            if not self._watch.is_same(thorough=True):
                self._look_at_weights()
            (text,) = read_prompts(self.model, [ids.tolist() if isinstance(ids, Tensor) else ids], 0)
            found, state = self._longest(text)
            if found == len(text):
                self.hits += 1
            else:
                self.misses += 1
                rest = torch.tensor([text[found:]], device=self.model.embeddings.weight.device)
                _, state = self._steps.prefill(rest, state)
                self._keep((len(text), _digest_of(text)), state)
            assert state is not None
            return state

    def fork(self, ids: Sequence[int] | Tensor, n: int) -> State:
        """The state after these tokens in n rows, for as many continuations."""
        return self.state_of(ids).fork(n)

    def is_of(self, model: LanguageModel) -> bool:
        """Whether this model has the same modules, or the same configuration and weights."""
        same = self.model.embeddings is model.embeddings and self.model.backbone is model.backbone
        return same or fingerprint_of(self.model) == fingerprint_of(model)

    def clear(self) -> None:
        """Forget all states, and remove this model's files."""
        with self._lock:
            self._states.clear()
            for path in self._files().values():
                path.unlink(missing_ok=True)

    @property
    def nbytes(self) -> int:
        """Bytes of the states in memory."""
        return sum(state.nbytes for state in self._states.values())

    @property
    def disk_nbytes(self) -> int:
        """Bytes of this model's files."""
        return sum(size for _, size, _ in self._sizes())

    def __len__(self) -> int:
        """States in memory."""
        return len(self._states)

    def _look_at_weights(self) -> None:
        """States are of the model as it is now."""
        self._states.clear()
        self.model = as_language_model(self._source)
        self._watch = Watch(self._source)
        self._steps = Steps(self.model)
        self.fingerprint = fingerprint_of(self.model)
        self._folder = None if self.directory is None else self.directory / self.fingerprint

    def _longest(self, text: list[int]) -> tuple[int, State | None]:
        """The most tokens of the text after which there is a state, and that state."""
        wanted: dict[int, str] = {}
        known = {key for keys in (self._states, self._files()) for key in keys if key[0] <= len(text)}
        lengths, digest, before = sorted({n for n, _ in known}), hashlib.sha256(), 0
        for n in lengths:
            digest.update(_bytes_of(text[before:n]))
            wanted[n], before = digest.copy().hexdigest(), n
        for n in reversed(lengths):
            key = (n, wanted[n])
            if key in known and (state := self._get(key)) is not None:
                return n, state
        return 0, None

    def _get(self, key: tuple[int, str]) -> State | None:
        if key in self._states:
            self._states.move_to_end(key)
            self._touch(key)
            return self._states[key]
        state = self._load(key)
        if state is not None:
            self._remember(key, state)
            self._touch(key)
        return state

    def _keep(self, key: tuple[int, str], state: State) -> None:
        self._remember(key, state)
        if self._folder is None or state.nbytes > self.disk_bytes:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            state.save(self._path(key), overwrite=True)
        except OSError as error:  # a full disk: the state is in memory, and was asked for
            logger.warning("PrefixCache: %s cannot be written: %s", self._path(key), error)
            return
        files = sorted(self._sizes())
        total = sum(size for _, size, _ in files)
        for _, size, path in files:
            if total <= self.disk_bytes:
                break
            path.unlink(missing_ok=True)
            total -= size

    def _remember(self, key: tuple[int, str], state: State) -> None:
        if state.nbytes > self.memory_bytes:
            return
        self._states[key] = state
        while self.nbytes > self.memory_bytes:
            self._states.popitem(last=False)

    def _load(self, key: tuple[int, str]) -> State | None:
        path = self._path(key)
        try:
            state = State.load(path).to(self.model.embeddings.weight.device)
            self._steps.check_state("PrefixCache", state, 1)
            if state.position.tolist() != [key[0]]:
                raise ValueError(f"position must be {key[0]}, got {state.position.tolist()}")
        except FileNotFoundError:  # another process was here
            return None
        except OSError as error:  # a disk, or somebody's permissions
            logger.warning("PrefixCache: %s cannot be read: %s", path, error)
            return None
        except (ValueError, TypeError) as error:
            path.unlink(missing_ok=True)
            logger.warning("PrefixCache: %s was damaged and is removed: %s", path, error)
            return None
        return state

    def _path(self, key: tuple[int, str]) -> Path:
        assert self._folder is not None
        return self._folder / f"{key[0]}-{key[1]}.state"

    def _files(self) -> dict[tuple[int, str], Path]:
        """This model's files; others in the folder are not touched."""
        if self._folder is None or not self._folder.is_dir():
            return {}
        found = {}
        for path in self._folder.iterdir():
            n, _, digest = path.stem.partition("-")
            if path.suffix == ".state" and n.isdecimal() and len(digest) == 64:
                found[int(n), digest] = path
        return found

    def _sizes(self) -> list[tuple[int, int, Path]]:
        """When each file was used last, in nanoseconds, its bytes, and the file."""
        found = []
        for path in self._files().values():
            try:
                about = path.stat()
            except FileNotFoundError:
                continue
            found.append((about.st_mtime_ns, about.st_size, path))
        return found

    def _touch(self, key: tuple[int, str]) -> None:
        if self._folder is not None:
            try:
                os.utime(self._path(key))
            except FileNotFoundError:
                return


@torch.no_grad()
def fingerprint_of(model: nn.Module) -> str:
    """A hash of a model's class, the names, shapes, dtypes and bytes of its tensors, and what decides its states.

    `State.fingerprint` does not know the weights; this does.
    """
    digest = hashlib.sha256(f"{type(model).__name__} {getattr(model, 'config', None)!r}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    decode = [getattr(module, "decode", None) for module in model.modules()]
    digest.update(repr([way for way in decode if way is not None]).encode())
    return digest.hexdigest()[:32]


def _bytes_of(tokens: Sequence[int]) -> bytes:
    return array("q", tokens).tobytes()


def _digest_of(tokens: Sequence[int]) -> str:
    return hashlib.sha256(_bytes_of(tokens)).hexdigest()

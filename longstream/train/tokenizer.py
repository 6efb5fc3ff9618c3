"""From bytes to token ids and back: raw bytes, bases of DNA, or any file of the Hugging Face ``tokenizers`` library.

Every kind puts one boundary token in front of every document; it serves as bos, eos and pad and stands for no bytes.
Saved next to a model, both load with ``transformers.AutoTokenizer``.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from longstream.train.corpus import Document

logger = logging.getLogger(__name__)

BOUNDARY = "<|doc|>"
# Boundary tokens of published tokenizers, looked for in this order.
KNOWN_BOUNDARIES = (BOUNDARY, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<s>", "<bos>")


class Tokenizer(Protocol):
    """What training and generation need of a tokenizer."""

    vocab_size: int
    boundary_id: int

    def encode(self, data: bytes) -> np.ndarray:
        """The ids of a text, without a boundary."""
        ...

    def encode_document(self, document: Document) -> np.ndarray:
        """The boundary, then the document's ids; an error names the document."""
        ...

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that ids stand for; boundaries stand for none."""
        ...

    def save(self, directory: str | Path) -> None:
        """Write what ``load_tokenizer`` and ``AutoTokenizer.from_pretrained`` read."""
        ...


class ByteTokenizer:
    """Ids 0 to 255 are the bytes themselves and 256 is the boundary, so any file at all is text."""

    vocab_size = 257
    boundary_id = 256

    def encode(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)

    def encode_document(self, document: Document) -> np.ndarray:
        return np.concatenate([[self.boundary_id], self.encode(document.data)], dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> bytes:
        kept = [token_id for token_id in map(int, ids) if token_id != self.boundary_id]
        if not all(0 <= token_id < 256 for token_id in kept):
            raise ValueError(f"ByteTokenizer.decode: ids must be in [0, 256], got {min(kept)} to {max(kept)}")
        return bytes(kept)

    def save(self, directory: str | Path) -> None:
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        content = {
            "version": "1.0",
            "added_tokens": [
                {"id": self.boundary_id, "content": BOUNDARY, "special": True}
                | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            ],
            "pre_tokenizer": byte_level,
            "decoder": byte_level,
            "model": {"type": "BPE", "vocab": BYTE_VOCABULARY, "merges": []},
        }
        _save(directory, json.dumps(content, indent=1), BOUNDARY)


class DNATokenizer:
    """HyenaDNA's ids of A, C, G, T and N, in either case, and of [UNK] for other letters; the boundary is its [SEP]."""

    vocab_size = 12
    boundary_id = 1

    def encode(self, data: bytes) -> np.ndarray:
        from longstream.hf.dna_tokenizer import encode_bases

        return encode_bases(data).astype(np.int32)

    def encode_document(self, document: Document) -> np.ndarray:
        from longstream.hf.dna_tokenizer import VOCABULARY

        ids = self.encode(document.data)
        if unknown := int((ids == VOCABULARY["[UNK]"]).sum()):
            said = f"{document.name}: {unknown:,} of {len(ids):,} letters are none of A, C, G, T and N"
            if 2 * unknown > len(ids):
                raise ValueError(f"{said}; the tokenizer 'dna' is for DNA, in FASTA or plain")
            logger.warning("%s, and become [UNK]", said)
        return np.concatenate([[self.boundary_id], ids], dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> bytes:
        from longstream.hf.dna_tokenizer import SPECIAL_TOKENS, VOCABULARY

        letters = {number: letter for letter, number in VOCABULARY.items() if letter not in SPECIAL_TOKENS}
        letters[VOCABULARY["[UNK]"]] = "?"
        return "".join(letters.get(int(token_id), "") for token_id in ids).encode()

    def save(self, directory: str | Path) -> None:
        from longstream.hf.dna_tokenizer import HyenaDNATokenizer

        HyenaDNATokenizer().save_pretrained(directory)


class JsonTokenizer:
    """A tokenizer from a ``tokenizers`` JSON file; documents must be UTF-8 text.

    Text that happens to spell a special token is encoded as text, so that it comes back; ``AutoTokenizer`` would read
    the special token.
    """

    def __init__(self, path: str | Path):
        import tokenizers

        self.path = Path(path)
        self._json = self.path.read_text(encoding="utf-8")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(self._json)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a file of the tokenizers library: {error}") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._byte_level = isinstance(self._tokenizer.decoder, tokenizers.decoders.ByteLevel)
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {token_id for token_id, token in added.items() if token.special}
        vocabulary = self._tokenizer.get_vocab()
        known = [token for token in KNOWN_BOUNDARIES if vocabulary.get(token) in self._special]
        if not known:
            raise ValueError(
                f"{path}: no special token to set documents apart, such as {', '.join(KNOWN_BOUNDARIES)}; add one with"
                f" Tokenizer.add_special_tokens([{BOUNDARY!r}]) and save the file again"
            )
        self.boundary = known[0]
        self.boundary_id = vocabulary[self.boundary]
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        self._lossy = False  # as far as documents have shown

    def encode(self, data: bytes) -> np.ndarray:
        return self.encode_document(Document("the text", data))[1:]

    def encode_document(self, document: Document) -> np.ndarray:
        text = _text(document)
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if not self._lossy and self._tokenizer.decode(ids, skip_special_tokens=False) != text:
            self._lossy = True  # said once, for the first document of perhaps many
            logger.warning(
                "%s: does not give %s back unchanged, so bits per byte will leave out what was lost",
                self.path,
                document.name,
            )
        return np.array([self.boundary_id, *ids], dtype=np.int32)

    def decode(self, ids: Iterable[int]) -> bytes:
        kept = [token_id for token_id in map(int, ids) if token_id not in self._special]
        if not self._byte_level:
            return self._tokenizer.decode(kept).encode()
        # Byte by byte instead of by the library, which decodes to text and so mars a character that is cut in two.
        tokens = [self._tokenizer.id_to_token(token_id) or "" for token_id in kept]  # None: a gap in the ids
        return b"".join(BYTES.get(letter) or letter.encode() for letter in "".join(tokens))

    def save(self, directory: str | Path) -> None:
        _save(directory, self._json, self.boundary)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load a tokenizer from a run's directory, or from a ``tokenizers`` JSON file."""
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"load_tokenizer: no file {file}")
    try:
        model = json.loads(file.read_text(encoding="utf-8"))["model"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: not a file of the tokenizers library") from None
    if model.get("vocab") == BYTE_VOCABULARY and not model.get("merges"):
        return ByteTokenizer()
    if model.get("type") == "WordLevel" and set(model.get("vocab", ())) == _dna_vocabulary():
        return DNATokenizer()
    return JsonTokenizer(file)


def _dna_vocabulary() -> set[str]:
    from longstream.hf.dna_tokenizer import VOCABULARY

    return set(VOCABULARY)


NAMED: dict[str, Callable[[], Tokenizer]] = {"bytes": ByteTokenizer, "dna": DNATokenizer}


def is_file(setting: str) -> bool:
    """Whether a setting of a tokenizer names a file."""
    return setting not in NAMED and not learned_size(setting)


def make_tokenizer(setting: str, documents: Iterable[Document]) -> Tokenizer:
    """The tokenizer that a setting names: "bytes", "dna", "bpe:N" (N tokens of ``documents``), or a JSON file."""
    if setting in NAMED:
        return NAMED[setting]()
    if size := learned_size(setting):
        with tempfile.TemporaryDirectory() as directory:
            return train_bpe(documents, size, Path(directory) / "tokenizer.json")
    return load_tokenizer(setting)


def learned_size(setting: str) -> int:
    """N of "bpe:N", or 0 for another setting."""
    kind, _, size = setting.partition(":")
    return int(size) if kind == "bpe" and size.isdecimal() else 0


def train_bpe(documents: Iterable[Document], vocab_size: int, path: str | Path) -> JsonTokenizer:
    """Learn byte-level BPE with the ``tokenizers`` library, save it as a JSON file and load it.

    The vocabulary holds the boundary, the 256 bytes and merges; it is smaller than ``vocab_size`` where the documents
    do not have that many pairs to merge. The same documents in the same order give the same file.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < len(BYTE_VOCABULARY) + 1:
        raise ValueError(f"train_bpe: vocab_size must be >= 257 (256 bytes and {BOUNDARY}), got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOUNDARY],
        initial_alphabet=list(BYTE_VOCABULARY),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(_text, documents), trainer)
    tokenizer.save(str(path))
    return JsonTokenizer(path)


def _byte_vocabulary() -> dict[str, int]:
    """The letter that byte-level vocabularies write for each byte (GPT-2's table), to the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte if byte in printable else 256 + others.index(byte)): byte for byte in range(256)}


BYTE_VOCABULARY = _byte_vocabulary()
BYTES = {letter: bytes([byte]) for letter, byte in BYTE_VOCABULARY.items()}


def _text(document: Document) -> str:
    try:
        return document.data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{document.name} is not UTF-8 text (byte {error.start}), which this tokenizer needs; training on bytes"
            " takes any file"
        ) from None


def _save(directory: str | Path, tokenizer_json: str, boundary: str) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": boundary,
        "eos_token": boundary,
        "pad_token": boundary,
        "padding_side": "left",  # so that generation goes on from the prompt's end
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,  # True would move spaces
    }
    (directory / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")

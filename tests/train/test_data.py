import bz2
import json
import logging
import lzma
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from longstream.train import data as data_module
from longstream.train.corpus import CorpusCheck, Document
from longstream.train.data import (
    PackedCollator,
    TokenStream,
    read_documents,
    reference_compressors,
    split,
    token_stream,
    windows,
)
from longstream.train.tokenizer import BOUNDARY, ByteTokenizer, JsonTokenizer, load_tokenizer, train_bpe

ALL_BYTES = bytes(range(256))
TEXT = "The  cat's tail\n\tdon't  stop: Größe, naïve, 日本語, 🙂👩‍👩‍👧, \x00 and the end. "


# Reading


def test_files_are_read_in_order_and_as_they_are(tmp_path):
    (tmp_path / "b.bin").write_bytes(ALL_BYTES)
    (tmp_path / "a.gz").write_bytes(b"\x1f\x8b not unpacked")
    documents = read_documents([tmp_path / "b.bin", str(tmp_path / "a.gz")])
    assert [document.data for document in documents] == [ALL_BYTES, b"\x1f\x8b not unpacked"]
    assert documents[0].name == str(tmp_path / "b.bin")


def test_bad_sources_are_refused_by_name(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="no sources; give file paths or 'builtin'"):
        read_documents([])
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.txt"):
        read_documents([tmp_path / "missing.txt"])
    with pytest.raises(IsADirectoryError, match="is a directory; give its files"):
        read_documents([tmp_path])
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        read_documents([tmp_path / "empty.txt"])


def test_unreadable_file_is_refused_by_name(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.txt").write_text("text")
    monkeypatch.setattr(data_module.Path, "read_bytes", refuse)
    with pytest.raises(PermissionError, match=r"cannot read .*secret\.txt: Permission denied"):
        read_documents([tmp_path / "secret.txt"])


@pytest.mark.parametrize(("verified", "level"), [(True, "INFO"), (None, "INFO"), (False, "WARNING")])
def test_builtin_corpus_says_whether_it_is_verified(monkeypatch, caplog, verified, level):
    monkeypatch.setattr(data_module, "builtin_documents", lambda: [Document("topic a", b"text")])
    monkeypatch.setattr(data_module, "verify", lambda documents: CorpusCheck(verified, "the note", 4, ""))
    with caplog.at_level(logging.INFO):
        assert read_documents(["builtin"]) == [Document("topic a", b"text")]
    assert [(record.levelname, record.message) for record in caplog.records] == [(level, "the note")]


# Splitting


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("sizes", [[100], [1, 99], [40, 60, 1], [7] * 30])
def test_split_loses_nothing_and_shares_nothing(sizes, fraction):
    rng = np.random.default_rng(0)
    documents = [Document(f"d{i}", rng.bytes(size)) for i, size in enumerate(sizes)]
    train, validation = split(documents, fraction)
    parts = [b"".join(document.data for document in part) for part in (train, validation)]
    assert b"".join(parts) == b"".join(document.data for document in documents)
    assert len(parts[1]) == round(fraction * sum(sizes))
    assert len(train) + len(validation) - len(documents) in (0, 1), "at most one document is cut"
    assert all(document.data for document in train + validation)


def test_split_does_not_cut_a_character():
    documents = [Document("text", "é日🙂".encode() * 20)]
    for percent in range(5, 95):
        train, validation = split(documents, percent / 100)
        moved = sum(len(document.data) for document in validation) - round(180 * percent / 100)
        assert train[0].data.decode() + validation[0].data.decode() == documents[0].data.decode()
        assert 0 <= moved <= 3


def test_split_of_bytes_that_are_no_text_is_exact():
    train, validation = split([Document("raw", b"\x80" * 100)], 0.25)
    assert (len(train[0].data), len(validation[0].data)) == (75, 25)


def test_split_refuses_an_empty_side():
    with pytest.raises(ValueError, match=r"5 bytes with validation_fraction=0\.05 leave nothing for validation"):
        split([Document("short", b"short")], 0.05)
    with pytest.raises(ValueError, match=r"4 bytes with validation_fraction=0\.5 leave nothing for training"):
        split([Document("one character", "🙂".encode())], 0.5)
    for fraction in (0.0, 1.0, -1):
        with pytest.raises(ValueError, match="validation_fraction must be between 0 and 1"):
            split([Document("text", b"text")], fraction)


# Tokenizers


def test_bytes_round_trip():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode(ALL_BYTES).tolist() == list(range(256))
    for data in (ALL_BYTES, ALL_BYTES[::-1], b"\xff\xfe\xc3", b""):
        assert tokenizer.decode(tokenizer.encode(data)) == data
        ids = tokenizer.encode_document(Document("d", data))
        assert (ids.dtype, ids[0], len(ids)) == (np.int32, 256, len(data) + 1)
        assert tokenizer.decode(ids) == data
    assert tokenizer.decode(torch.tensor([72, 105, 256, 33]).tolist()) == b"Hi!"
    with pytest.raises(ValueError, match=r"ids must be in \[0, 256\], got 3 to 257"):
        tokenizer.decode([3, 257])


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    documents = [Document("a", TEXT.encode() * 3), Document("b", b"the cat and the tail of the cat")]
    return train_bpe(documents, 300, tmp_path_factory.mktemp("bpe") / "bpe.json")


def test_bpe_round_trip(bpe):
    rng = np.random.default_rng(0)
    codepoints = [c for c in rng.integers(0, 0x110000, 2000).tolist() if not 0xD800 <= c < 0xE000]
    for text in (
        TEXT,
        "",
        " ",
        "\r\n\r\n",
        f"a {BOUNDARY} b",
        "".join(map(chr, codepoints)),
        "".join(map(chr, range(0x300))),
    ):
        ids = bpe.encode(text.encode())
        assert bpe.boundary_id not in ids
        assert bpe.decode(ids) == text.encode()
        assert b"".join(bpe.decode([token_id]) for token_id in ids) == text.encode(), "each token has its bytes"
    ids = bpe.encode_document(Document("text", TEXT.encode()))
    assert (ids.dtype, ids[0]) == (np.int32, bpe.boundary_id)
    assert bpe.decode(ids) == TEXT.encode()
    assert bpe.vocab_size == 300
    assert len(bpe.encode(TEXT.encode())) < len(TEXT.encode())


def test_bpe_training_is_deterministic(bpe, tmp_path):
    documents = [Document("a", TEXT.encode() * 3), Document("b", b"the cat and the tail of the cat")]
    train_bpe(documents, 300, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == bpe.path.read_bytes()


def test_bpe_refuses(bpe, tmp_path):
    with pytest.raises(ValueError, match="vocab_size must be >= 257"):
        train_bpe([Document("a", b"text")], 256, tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"photo\.jpg is not UTF-8 text \(byte 1\).*training on bytes takes any file"):
        train_bpe([Document("photo.jpg", b"a\xff")], 300, tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"photo\.jpg is not UTF-8 text"):
        token_stream([Document("photo.jpg", b"a\xff")], bpe)


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_saved_tokenizer_loads_here_and_in_transformers(kind, bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer = ByteTokenizer() if kind == "bytes" else bpe
    tokenizer.save(tmp_path)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path)
    auto.save_pretrained(tmp_path / "again")
    for restored in (load_tokenizer(tmp_path), load_tokenizer(tmp_path / "again" / "tokenizer.json")):
        assert type(restored) is type(tokenizer)
        assert (restored.vocab_size, restored.boundary_id) == (tokenizer.vocab_size, tokenizer.boundary_id)
        assert restored.encode(TEXT.encode()).tolist() == tokenizer.encode(TEXT.encode()).tolist()
    assert len(auto) == tokenizer.vocab_size
    assert auto.bos_token_id == auto.eos_token_id == auto.pad_token_id == tokenizer.boundary_id
    every_character = "".join(map(chr, range(0xD800)))
    for text in (TEXT, every_character):
        encoded = auto(text)
        assert set(encoded) == {"input_ids", "attention_mask"}
        assert encoded["input_ids"] == tokenizer.encode(text.encode()).tolist()
        assert auto.decode(encoded["input_ids"]) == text
    assert auto.decode([tokenizer.boundary_id]) == BOUNDARY


def test_json_files_that_will_not_do(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    (tmp_path / "not.json").write_text("hello")
    (tmp_path / "other.json").write_text('{"model": {"type": "none of these"}}')
    with pytest.raises(ValueError, match=r"not\.json: not a file of the tokenizers library"):
        load_tokenizer(tmp_path / "not.json")
    with pytest.raises(ValueError, match=r"other\.json: not a file of the tokenizers library"):
        load_tokenizer(tmp_path / "other.json")
    with pytest.raises(FileNotFoundError, match=r"load_tokenizer: no file .*tokenizer\.json"):
        load_tokenizer(tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.save(str(tmp_path / "words.json"))
    with pytest.raises(
        ValueError, match=r"words\.json: no special token to set documents apart, such as <\|doc\|>, .*add"
    ):
        JsonTokenizer(tmp_path / "words.json")


def test_foreign_tokenizer_is_used_as_plain_text(tmp_path, caplog):
    """Truncation and automatic special tokens are off, its own end token is the boundary, losses are reported once."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1, "</s>": 7}, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["</s>"])
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 7)])
    words.enable_truncation(2)
    words.save(str(tmp_path / "words.json"))
    tokenizer = JsonTokenizer(tmp_path / "words.json")
    assert (tokenizer.boundary, tokenizer.boundary_id, tokenizer.vocab_size) == ("</s>", 7, 8)
    assert tokenizer.encode_document(Document("d", b"a a a")).tolist() == [7, 0, 0, 0]
    assert tokenizer.decode([7, 0, 0, 7]) == b"a a"
    assert not caplog.records
    token_stream([Document("first", b"a  b"), Document("second", b"c")], tokenizer)
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'words.json'}: does not give first back unchanged, so bits per byte will leave out what was lost"
    ]


# Streams, windows, batches


def test_stream_and_bits_per_byte(bpe):
    documents = [Document("a", b"xy"), Document("b", b"z")]
    stream = token_stream(documents, ByteTokenizer())
    assert stream.ids.tolist() == [256, 120, 121, 256, 122]
    assert stream.num_bytes == 3
    assert stream.bits_per_byte(math.log(257)) == pytest.approx(5 * math.log2(257) / 3)
    text = token_stream([Document("text", TEXT.encode())], bpe)
    assert text.num_bytes == len(TEXT.encode()) > len(text.ids)
    assert text.bits_per_byte(1.0) == pytest.approx(len(text.ids) / math.log(2) / len(TEXT.encode()))


def test_windows():
    stream = TokenStream(np.arange(11, dtype=np.int32), 10)
    dataset = windows(stream, 4)
    assert len(dataset) == 2  # 8, 9, 10 are too few for a third
    assert [dataset[i].tolist() for i in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert dataset[0].dtype == torch.int64
    with pytest.raises(IndexError):
        dataset[2]
    assert len(windows(stream, 11)) == 1
    with pytest.raises(ValueError, match=r"one window takes seq_len=12 tokens, got 11 tokens \(10 bytes of text\)"):
        windows(stream, 12)
    with pytest.raises(ValueError, match="seq_len must be >= 2"):
        windows(stream, 1)


def test_collator():
    batch = PackedCollator(boundary_id=9)([torch.tensor([1, 2, 9, 3]), torch.tensor([9, 4, 5, 9])])
    assert batch["input_ids"].tolist() == [[1, 2, 9, 3, 9, 4, 5, 9]]
    assert batch["labels"].tolist() == [[-100, 2, 9, 3, -100, 4, 5, 9]]
    assert batch["cu_seqlens"].tolist() == [0, 2, 4, 7, 8]
    assert [batch[name].dtype for name in ("input_ids", "labels", "cu_seqlens")] == [
        torch.int64,
        torch.int64,
        torch.int32,
    ]


def test_collator_of_one_document_and_of_nothing_but_boundaries():
    assert PackedCollator(9)([torch.tensor([1, 2]), torch.tensor([3, 4])])["cu_seqlens"].tolist() == [0, 2, 4]
    assert PackedCollator(9)([torch.tensor([9, 9])])["cu_seqlens"].tolist() == [0, 1, 2]


def test_two_processes_train_on_the_windows_of_one():
    """Batch 4 in each of two processes is batch 8 in one, step by step."""
    shards = pytest.importorskip("accelerate.data_loader").BatchSamplerShard
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    dataset = windows(TokenStream(np.arange(240, dtype=np.int32), 240), 10)  # 24 windows

    def batches(size, process=None):
        sampler = BatchSampler(
            RandomSampler(dataset, generator=torch.Generator().manual_seed(0)), size, drop_last=False
        )
        if process is not None:
            sampler = shards(sampler, num_processes=2, process_index=process)
        return [
            batch["input_ids"].view(-1, 10)
            for batch in DataLoader(dataset, batch_sampler=sampler, collate_fn=PackedCollator(-1))
        ]

    for one, *two in zip(batches(8), batches(4, 0), batches(4, 1), strict=True):
        assert one.tolist() == torch.cat(two).tolist()


def test_reference_compressors():
    data = TEXT.encode() * 50
    assert reference_compressors(data) == {
        "bz2": 8 * len(bz2.compress(data, 9)) / len(data),
        "xz": 8 * len(lzma.compress(data, preset=9)) / len(data),
    }
    with pytest.raises(ValueError, match="data is empty"):
        reference_compressors(b"")


def test_importing_loads_neither_transformers_nor_tokenizers():
    code = "import json, sys, longstream.train.data; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert not {"transformers", "tokenizers", "accelerate"} & set(loaded)

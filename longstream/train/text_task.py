"""The task `next-token`: documents in, bits per byte out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, TrainingArguments

from longstream.sequences import ReadSpec, read_token_documents
from longstream.train.batches import ShuffledWindows
from longstream.train.chunks import backward_in_chunks, first_chunk, why_no_chunks
from longstream.train.corpus import Document
from longstream.train.data import read_documents, split, token_stream, windows
from longstream.train.evaluate import Evaluation, evaluate_documents
from longstream.train.loading import load_run
from longstream.train.models import build_model, describe_model, make_collator
from longstream.train.rundir import RunDirectory
from longstream.train.sample import room_after, sample_text
from longstream.train.settings import DataSettings, Settings
from longstream.train.task import Curve, Measured, Task
from longstream.train.tokenizer import NAMED, load_tokenizer, make_tokenizer


class TextTask(Task):
    """Predict the next token of documents."""

    curve = Curve("bits_per_byte", "bits per byte")
    unit = "tokens"

    def __init__(self, settings: Settings, checkpoint: Path | None = None) -> None:
        self.settings = settings
        self.train, self.validation = read_data(settings.data)
        # A resumed run takes its own: the file it came from may have changed since.
        self.tokenizer = (
            load_tokenizer(checkpoint) if checkpoint else make_tokenizer(settings.data.tokenizer, self.train)
        )
        self.stream = token_stream(self.train, self.tokenizer)
        self.windows = windows(self.stream, settings.data.seq_len)
        self.collator = make_collator(settings.model, self.tokenizer.boundary_id)

    @property
    def has_validation(self) -> bool:
        return bool(self.validation)

    def facts(self) -> dict[str, Any]:
        return {
            "sha256": data_digest(self.train, self.validation),
            "validation_sha256": data_digest([], self.validation),
            "training_bytes": _size(self.train),
            "validation_bytes": _size(self.validation),
            "documents": len(self.train) + len(self.validation),
            "sequences": len(self.windows),
        }

    def describe_data(self, facts: dict[str, Any]) -> str:
        return f"{facts['training_bytes']:,} + {facts['validation_bytes']:,} bytes"

    def summarize(self, model: Any, facts: dict[str, Any], per_step: int) -> str:
        return (
            f"{describe_model(self.settings.model, model)};"
            f" {facts['training_bytes']:,} bytes to train on, {facts['validation_bytes']:,} held out;"
            f" {facts['sequences']:,} sequences of {self.settings.data.seq_len} tokens, {per_step} a step,"
            f" {max(1, facts['sequences'] // per_step):,} steps a pass"
        )

    def make_model(self) -> PreTrainedModel:
        model = build_model(
            self.settings.model,
            vocab_size=self.tokenizer.vocab_size,
            boundary_id=self.tokenizer.boundary_id,
            seq_len=self.settings.data.seq_len,
        )
        if (chunk := self.settings.train.chunk) and (why := why_no_chunks(model)) is not None:
            raise ValueError(f"TrainSettings.chunk must be 0 for {self.settings.model.name}, got {chunk}: {why}")
        return model

    def make_items(self, length: int) -> Dataset[Tensor]:
        return ShuffledWindows(self.windows, length, self.settings.train.seed)

    def count(self, batches: Sequence[dict[str, Tensor]], items: Any, args: TrainingArguments) -> int:
        return int(items or 0)  # transformers has added up the processes

    def evaluate(self, model: Any, args: TrainingArguments) -> Measured:
        """Exact figures, the documents shared out among the processes."""
        by_length = sorted(self.validation, key=lambda document: len(document.data), reverse=True)
        mine = evaluate_documents(model, self.tokenizer, by_length[args.process_index :: args.world_size])
        sums = torch.tensor(mine, dtype=torch.float64, device=args.device)
        if args.world_size > 1:
            dist.all_reduce(sums)
        nats, tokens, size = sums.tolist()
        return self._measured(Evaluation(nats, int(tokens), int(size)))

    def finish(self, run: RunDirectory, measured: Measured | None, device: Any) -> Measured | None:
        if measured is None and self.has_validation:
            model = load_run(run.path).model.to(device)
            measured = self._measured(evaluate_documents(model, self.tokenizer, self.validation))
        return measured

    def _measured(self, found: Evaluation) -> Measured:
        return Measured(
            rank=(-found.nats_per_token,),
            row={
                "loss": found.nats_per_token,
                "bits_per_byte": found.bits_per_byte,
                "perplexity": found.perplexity,
            },
            brief=f"{found.bits_per_byte:.4f} bits per byte on {found.bytes:,} held-out bytes",
            found=found,
        )

    def backward_in_chunks(
        self, model: Any, batch: dict[str, Tensor], chunk: int, items: Any, scale: float, forward_context: Any
    ) -> Tensor:
        return backward_in_chunks(model, batch, chunk, items, forward_context, seq_len=self.settings.data.seq_len)

    def shorten(self, batch: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
        return first_chunk(batch, chunk)

    def training_row(self, loss: float) -> dict[str, float]:
        return {"bits_per_byte": self.stream.bits_per_byte(loss)}

    def brief(self, row: dict[str, Any]) -> str:
        return f"{row['bits_per_byte']:.3f} bits/byte"

    def save(self, folder: str) -> None:
        self.tokenizer.save(folder)

    def show(self, model: Any, run: RunDirectory, step: int) -> None:
        """Write a sample, after its prompt."""
        train = self.settings.train
        prompt = train.sample_prompt.encode()
        length = min(train.sample_tokens, room_after(model, self.tokenizer, prompt))
        if length < 1:
            return
        text = sample_text(
            model, self.tokenizer, prompt, max_new_tokens=length, temperature=0.8, seed=train.seed, may_end=False
        )
        run.samples.mkdir(exist_ok=True)
        (run.samples / f"step-{step:06d}.txt").write_bytes(prompt + text)


def read_data(data: DataSettings) -> tuple[list[Document], list[Document]]:
    """Documents to train on, and held out: files of their own, or a fraction from the end, but not too many bytes."""
    documents = read_files(data.files, data)
    size = _size(documents)
    if data.tokenizer in NAMED and size < data.seq_len:  # a token is a byte
        raise ValueError(f"{size} bytes of data are fewer than one sequence of seq_len={data.seq_len}; give more text")
    if data.validation_files:
        return documents, read_files(data.validation_files, data)
    fraction = min(data.validation_fraction, (data.validation_bytes or size) / size)
    return split(documents, fraction) if fraction else (documents, [])


def read_files(files: Sequence[str], data: DataSettings) -> list[Document]:
    """The documents of files: of FASTA, tables, sound and the like one for each record, of all others the file."""
    documents = []
    for file in files:
        records = None if file == "builtin" else read_token_documents(file, ReadSpec(text_column=data.text_column))
        documents += read_documents([file]) if records is None else [Document(name, text) for name, text in records]
    return documents


def data_digest(train: Sequence[Document], validation: Sequence[Document]) -> str:
    """The sha256 that a run's data.json knows its data by."""
    digest = hashlib.sha256()
    for part in (train, validation):
        for document in part:
            digest.update(len(document.data).to_bytes(8, "big") + document.data)
    return digest.hexdigest()


def _size(documents: Sequence[Document]) -> int:
    return sum(len(document.data) for document in documents)

"""Text in chunks with a carried state, and documents that do not come from plain files."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from longstream.cli import main
from longstream.train.chunks import backward_in_chunks, first_chunk
from longstream.train.corpus import Document
from longstream.train.loading import load_run
from longstream.train.models import build_model
from longstream.train.run import train
from longstream.train.rundir import RunDirectory
from longstream.train.text_task import TextTask, read_data
from longstream.train.tokenizer import DNATokenizer, load_tokenizer
from tests.test_cli import fails
from tests.train.runs import losses, small, write_text

SEQ_LEN = 12


def packed(tmp_path: Path):
    """Three windows of 12 tokens of documents of a few letters, so that sequences begin everywhere in a chunk."""
    files = []
    for i, size in enumerate((3, 5, 1, 9, 4, 2, 8, 3, 6)):
        (tmp_path / f"{i}.txt").write_bytes(bytes(range(97, 97 + size)))
        files.append(str(tmp_path / f"{i}.txt"))
    task = TextTask(small(Path(files[0]), files=files, validation_fraction=0, seq_len=SEQ_LEN))
    return task.collator([task.windows[i] for i in range(3)])


def network(name: str):
    torch.manual_seed(0)
    settings = small(Path("x"), name=name, use_short_conv=name != "hyena").model
    model = build_model(settings, vocab_size=257, boundary_id=256, seq_len=SEQ_LEN).double()
    for parameter in model.parameters():  # at initialization the state counts for little
        parameter.data.mul_(3)
    return model


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", ["hgrn2", "hgrn", "hyena", "hybrid", "gru"])
@pytest.mark.parametrize("chunk", [12, 50])
def test_a_chunk_of_the_whole_window_is_the_whole(name: str, chunk: int, tmp_path: Path):
    model, batch = network(name), packed(tmp_path)
    loss = backward_in_chunks(model, batch, chunk, 30, nullcontext, seq_len=SEQ_LEN)
    found = gradients(model)
    whole = model(**batch, num_items_in_batch=30).loss
    whole.backward()
    assert loss.item() == pytest.approx(whole.item(), rel=1e-9)
    for parameter, expected in gradients(model).items():
        torch.testing.assert_close(found[parameter], expected, rtol=1e-7, atol=1e-9, msg=parameter)


@pytest.mark.parametrize("name", ["hgrn2", "hyena"])
def test_the_gradient_is_that_of_truncated_backpropagation(name: str, tmp_path: Path):
    """By hand: document by document, each in pieces at the window's chunks, the state detached between them."""
    model, batch, chunk = network(name), packed(tmp_path), 5
    loss = backward_in_chunks(model, batch, chunk, 30, nullcontext, seq_len=SEQ_LEN)
    found = gradients(model)
    bounds, total = batch["cu_seqlens"].tolist(), 0.0
    for first, last in pairwise(bounds):
        state, at = None, first
        while at < last:
            window = at // SEQ_LEN * SEQ_LEN
            end = min(last, window + ((at - window) // chunk + 1) * chunk, window + SEQ_LEN)
            output = model(input_ids=batch["input_ids"][:, at:end], past_key_values=state, use_cache=True)
            targets = batch["shift_labels"][0, at:end]
            part = torch.nn.functional.cross_entropy(output.logits[0], targets, reduction="sum", ignore_index=-100)
            if (targets != -100).any():
                (part / 30).backward()
            total += part.item() / 30
            state, at = output.past_key_values.state.detach(), end
    assert loss.item() == pytest.approx(total, rel=1e-9)
    for parameter, expected in gradients(model).items():
        torch.testing.assert_close(found[parameter], expected, rtol=1e-7, atol=1e-9, msg=parameter)


def test_the_first_chunk_of_a_batch(tmp_path: Path):
    batch = packed(tmp_path)
    short = first_chunk(batch, 7)
    assert short["input_ids"].shape == short["labels"].shape == short["shift_labels"].shape == (1, 7)
    assert short["cu_seqlens"].tolist() == [n for n in batch["cu_seqlens"].tolist() if n < 7] + [7]
    assert first_chunk(batch, 99)["input_ids"].shape == (1, 36)


def test_a_run_in_chunks(tmp_path: Path):
    text = write_text(tmp_path / "text.txt", 2000)
    for name, chunk in (("whole", 0), ("chunk", 32), ("cut", 10)):
        settings = small(text, chunk=chunk, steps=3, eval_every=0, sample_tokens=0, gradient_accumulation=2)
        train(settings, tmp_path / name)
    whole, chunk, cut = (losses(tmp_path / name) for name in ("whole", "chunk", "cut"))
    assert chunk == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in whole]
    assert cut[0][1] == pytest.approx(whole[0][1], rel=1e-5)
    assert cut != chunk
    with pytest.raises(ValueError, match="chunk must be 0 for llama, got 4: a LlamaForCausalLM has no recurrent state"):
        train(small(text, chunk=4, name="llama"), tmp_path / "none")


def test_files_that_are_held_out(tmp_path: Path):
    text, other = write_text(tmp_path / "text.txt", 900), tmp_path / "other.txt"
    other.write_bytes(b"the sea and the wind. " * 9)
    data = small(text, validation_files=[str(other)]).data
    assert read_data(data) == ([Document(str(text), text.read_bytes())], [Document(str(other), other.read_bytes())])


def test_dna_from_fasta_to_letters(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    random = np.random.default_rng(0)
    records = ["".join(random.choice(list("acgtACGT"), 300)) for _ in range(3)]
    (tmp_path / "genome.fa").write_text("".join(f">chr{i}\n{record}\n" for i, record in enumerate(records)))
    settings = small(tmp_path / "genome.fa", tokenizer="dna", steps=2, eval_every=2)
    train(settings, tmp_path / "run")
    documents, held_out = read_data(settings.data)
    assert "".join(d.data.decode() for d in (*documents, *held_out)) == "".join(records).upper()
    model, tokenizer = load_run(tmp_path / "run")
    assert isinstance(tokenizer, DNATokenizer)
    assert model.config.vocab_size == 12
    assert tokenizer.decode([1, *tokenizer.encode(b"acgtNX"), 1]) == b"ACGTN?"
    assert main(["generate", str(tmp_path / "run"), "--prompt", "ACGT", "--max-new-tokens", "20", "--no-end"]) == 0
    assert capsys.readouterr().out.startswith("ACGT")
    train(replace(settings, train=replace(settings.train, steps=3)), tmp_path / "run", resume=True)
    assert RunDirectory(tmp_path / "run").newest_checkpoint() is not None
    assert isinstance(load_tokenizer(tmp_path / "run"), DNATokenizer)
    (tmp_path / "words.txt").write_text("no bases in here, or hardly any " * 20)
    capsys.readouterr()
    words = ("train", "--data", str(tmp_path / "words.txt"), "--tokenizer", "dna", "--seq-len", "32")
    assert "are none of A, C, G, T and N; the tokenizer 'dna' is for DNA" in fails(
        capsys, *words, "--out", str(tmp_path / "x")
    )


def test_text_of_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = "\n".join(f'{i},"the sea, {i}"' for i in range(40))
    (tmp_path / "table.csv").write_text(f"id,words\n{rows}\n")
    settings = small(tmp_path / "table.csv", text_column="words", steps=1, eval_every=0)
    documents, held_out = read_data(settings.data)
    assert len(documents) + len(held_out) in (40, 41)  # one may be cut
    assert documents[3].data == b"the sea, 3"
    train(settings, tmp_path / "run")
    command = ("evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "table.csv"))
    assert main([*command, "--text-column", "words"]) == 0
    assert f"{sum(len(f'the sea, {i}') for i in range(40))} bytes" in capsys.readouterr().out
    assert "data.season is for runs of classify" in fails(capsys, *command, "--season", "3")

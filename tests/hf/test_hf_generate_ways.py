"""generate as people call it: streamers, strings and criteria that stop, beams and samples checked by hand."""

import threading
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
)

from tests.hf.conftest import VOCAB, left_padded, random_ids
from tests.numerics import assert_same

GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8, "pad_token_id": 0}
PROMPTS = [random_ids(length, seed=length).tolist() for length in (3, 8, 1)]
IDS = random_ids(2, 6)


@pytest.fixture
def tokenizer():
    """Letters: id 0 is a, 1 is b, and so on."""
    letters = {chr(ord("a") + token): token for token in range(VOCAB)}
    base = Tokenizer(models.WordLevel(letters, unk_token="a"))
    base.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    base.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=base, unk_token="a", clean_up_tokenization_spaces=False)


def write(model, ids, mask=None, **options):
    torch.manual_seed(3)
    return model.generate(ids, attention_mask=torch.ones_like(ids) if mask is None else mask, **(GREEDY | options))


def test_text_streamer(model, tokenizer, capsys):
    expected = tokenizer.decode(write(model, IDS[:1])[0, 6:])
    write(model, IDS[:1], streamer=TextStreamer(tokenizer, skip_prompt=True))
    assert capsys.readouterr().out == expected + "\n"


def test_text_iterator_streamer(model, tokenizer):
    """Each piece comes before the next is written: the reader holds the writer's hand by a queue."""
    expected = tokenizer.decode(write(model, IDS[:1])[0])
    streamer = TextIteratorStreamer(tokenizer, timeout=60)
    thread = threading.Thread(target=write, args=(model, IDS[:1]), kwargs={"streamer": streamer})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) >= 1


def test_stop_strings(model, tokenizer):
    """A row is done where the string is complete; rows go on until all are, for here no token ends a text."""
    free = write(model, IDS)
    stop = tokenizer.decode(free[0, 8:10])
    ends = []
    for row in range(2):
        found = tokenizer.decode(free[row, 6:]).find(stop)
        ends.append(8 if found < 0 else found + len(stop))
    for state in (True, False):
        out = write(model, IDS, stop_strings=[stop], tokenizer=tokenizer, use_cache=state)
        assert out.equal(free[:, : 6 + max(ends)])
    alone = write(model, IDS[:1], stop_strings=["zz", stop], tokenizer=tokenizer)
    assert alone.equal(free[:1, : 6 + ends[0]])
    assert ends[0] < 8


class Until(StoppingCriteria):
    """A row is done after its token ``token``; it keeps what it was shown."""

    def __init__(self, token):
        self.token, self.widths = token, []

    def __call__(self, input_ids, scores, **kwargs) -> Any:
        self.widths.append(input_ids.shape[1])
        return input_ids[:, -1] == self.token


def test_stopping_criteria(model):
    free = write(model, IDS)
    until = Until(int(free[0, 8]))
    out = write(model, IDS, stopping_criteria=StoppingCriteriaList([until]))
    ends = [next((n + 1 for n, token in enumerate(row) if token == until.token), 8) for row in free[:, 6:].tolist()]
    assert until.widths == list(range(7, 7 + max(ends)))
    assert out.equal(free[:, : 6 + max(ends)])
    with_end = write(model, IDS, stopping_criteria=StoppingCriteriaList([until]), eos_token_id=VOCAB)
    for row, end in enumerate(ends):  # where some token ends a text, rows that are done are padded
        assert with_end[row, 6 : 6 + end].equal(free[row, 6 : 6 + end])
        assert (with_end[row, 6 + end :] == 0).all()


@torch.no_grad()
def test_two_tokens_by_beams_are_the_best_of_all(model):
    """With as many beams as tokens the search is whole: 361 pairs, scored one by one without a state."""
    out = write(
        model, IDS, num_beams=VOCAB, max_new_tokens=2, num_return_sequences=4, length_penalty=1.0,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    pairs = torch.tensor(list(product(range(VOCAB), repeat=2)))
    for row in range(2):
        texts = torch.cat([IDS[row].expand(len(pairs), -1), pairs], 1)
        log_p = model(texts, use_cache=False).logits[:, 5:7, :VOCAB].log_softmax(-1)
        sums = log_p.gather(-1, pairs[..., None]).squeeze(-1).sum(1)
        best = sums.topk(4)
        assert out.sequences[4 * row : 4 * row + 4, 6:].equal(pairs[best.indices])
        # transformers divides by the length of what is new, to the power of the penalty.
        assert_same("scores", out.sequences_scores[4 * row : 4 * row + 4], best.values / 2, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 2.0])
def test_beams_of_a_left_padded_batch_are_each_prompts_own(model, length_penalty):
    """With an end of text, so that hypotheses of several lengths compete."""
    options: dict[str, Any] = {"num_beams": 4, "num_return_sequences": 3, "length_penalty": length_penalty}
    options |= {"eos_token_id": [5, 11], "pad_token_id": 18}  # a 0 would be taken for no pad
    options |= {"output_scores": True, "return_dict_in_generate": True}
    ids, mask = left_padded(PROMPTS)
    batch = write(model, ids, mask, **options)
    for row, prompt in enumerate(PROMPTS):
        alone = write(model, torch.tensor([prompt]), **options)
        for n in range(3):
            mine, own = batch.sequences[3 * row + n, ids.shape[1] :], alone.sequences[n, len(prompt) :]
            width = min(len(mine), len(own))
            assert mine[:width].equal(own[:width])
            assert (torch.cat([mine[width:], own[width:]]) == 18).all()
        assert_same("scores", batch.sequences_scores[3 * row : 3 * row + 3], alone.sequences_scores, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "temperature": 0.7}, {"do_sample": True, "min_p": 0.05}])
def test_each_token_was_drawn_from_the_logits_of_its_text(model, options):
    """In a left-padded batch: what generate calls logits are those of the row alone, without a state."""
    ids, mask = left_padded(PROMPTS)
    out = write(model, ids, mask, output_logits=True, output_scores=True, return_dict_in_generate=True, **options)
    logits = torch.stack(out.logits, 1)
    for row, prompt in enumerate(PROMPTS):
        text = out.sequences[row, ids.shape[1] - len(prompt) :]
        alone = model(text[None], use_cache=False).logits[0, len(prompt) - 1 : -1, :VOCAB]
        assert_same("logits", logits[row].double(), alone, 1e-6)  # transformers keeps them in float32
    scores = torch.stack(out.scores, 1)
    chosen = scores.gather(-1, out.sequences[:, ids.shape[1] :, None])
    assert chosen.isfinite().all()
    if "temperature" in options:
        assert_same("scores", scores[scores.isfinite()], (logits / 0.7)[scores.isfinite()], 1e-5)


def test_rules_on_logits(model):
    """Processors look at the tokens so far, those before the state too."""
    ids = IDS[:, [0, 1, 0, 1, 0, 1]]
    rules: dict[str, Any] = {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3, "bad_words_ids": [[4]]}
    out = write(model, ids, **rules)
    assert out.equal(write(model, ids, use_cache=False, **rules))
    assert not (out[:, 6:] == 4).any()
    for row in out.tolist():
        new = set(pairwise(row[5:]))
        assert len(new) == 8
        assert not new & set(pairwise(row[:6]))

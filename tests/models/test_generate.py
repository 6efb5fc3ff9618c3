"""Native generation against plain loops over the whole text."""

import pytest
import torch

from longstream.models import HGRN2Config, LanguageModel, ModelConfig, generate, stream

CONFIG = ModelConfig(
    hidden_size=16,
    num_layers=2,
    vocab_size=13,
    mixer=HGRN2Config(expand_ratio=8, conv_size=4),
    initializer_range=0.5,
)
PROMPTS = [[1, 2, 3, 4, 5], [7], [3, 9]]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(CONFIG).double()


def recompute(model: LanguageModel, prompt: list[int], n: int) -> list[int]:
    """Greedy, from scratch for every token."""
    text = list(prompt)
    for _ in range(n):
        text.append(int(model(torch.tensor([text]))[0][0, -1].argmax()))
    return text[len(prompt) :]


def test_greedy_equals_recomputing_for_prompts_of_different_lengths(model: LanguageModel):
    assert generate(model, PROMPTS, 12, temperature=0) == [recompute(model, p, 12) for p in PROMPTS]


def test_a_seed_repeats_and_a_row_does_not_depend_on_the_others(model: LanguageModel):
    together = generate(model, PROMPTS, 20, seed=5)
    assert together == generate(model, PROMPTS, 20, seed=5)
    assert together != generate(model, PROMPTS, 20, seed=6)
    assert together[0] == generate(model, PROMPTS[:1], 20, seed=5)[0]
    assert generate(model, [[1], [1]], 20, seed=5)[0] != generate(model, [[1], [1]], 20, seed=5)[1]


def test_low_temperature_and_top_k_1_and_small_top_p_are_greedy(model: LanguageModel):
    greedy = generate(model, PROMPTS, 10, temperature=0)
    assert generate(model, PROMPTS, 10, top_k=1) == greedy
    assert generate(model, PROMPTS, 10, top_p=1e-9) == greedy
    assert generate(model, PROMPTS, 10, temperature=1e-6) == greedy


def test_samples_follow_the_distribution(model: LanguageModel):
    """4,000 draws of one token: each frequency within 5 standard deviations of its probability."""
    n = 4000
    logits = model(torch.tensor([[2, 3]]))[0][0, -1] / 1.7
    drawn = torch.tensor([row[0] for row in generate(model, [[2, 3]] * n, 1, temperature=1.7, seed=0)])
    frequency = torch.bincount(drawn, minlength=13) / n
    p = logits.softmax(-1).detach()
    assert ((frequency - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-3).all()


def test_top_k_and_top_p_keep_what_they_should(model: LanguageModel):
    p = model(torch.tensor([[2, 3]]))[0][0, -1].softmax(-1).detach()
    order = p.argsort(descending=True)
    by_k = {row[0] for row in generate(model, [[2, 3]] * 2000, 1, top_k=3, temperature=3.0, seed=0)}
    assert by_k <= set(order[:3].tolist())
    assert len(by_k) == 3
    top_p = float(p[order[:3]].sum()) - 1e-6  # reached by the third token
    by_p = {row[0] for row in generate(model, [[2, 3]] * 4000, 1, top_p=top_p, seed=0)}
    assert by_p == set(order[:3].tolist())


def test_a_row_ends_at_eos_and_the_others_go_on(model: LanguageModel):
    free = generate(model, PROMPTS, 12, temperature=0)
    eos = free[0][2]
    ended = generate(model, PROMPTS, 12, temperature=0, eos_token_id=eos)
    for row, whole in zip(ended, free, strict=True):
        expected = whole[: whole.index(eos) + 1] if eos in whole else whole
        assert row == expected


def test_tokens_come_one_at_a_time(model: LanguageModel):
    made = stream(model, PROMPTS, 10_000, temperature=0)
    first = next(made)
    assert first == [row[0] for row in generate(model, PROMPTS, 1, temperature=0)]
    second = next(made)  # the other 9,998 are never made
    assert second == [row[1] for row in generate(model, PROMPTS, 2, temperature=0)]


def test_nothing_to_make(model: LanguageModel):
    assert generate(model, PROMPTS, 0) == [[], [], []]


@pytest.mark.parametrize(
    ("prompts", "options", "says"),
    [
        ([], {}, "at least one prompt"),
        ([[1], []], {}, r"prompts\[1\] must have at least one token"),
        ([[1, 13]], {}, r"ids must lie in \[0, 13\), got 13"),
        ([[-1]], {}, r"ids must lie in \[0, 13\), got -1"),
        ([[1]], {"temperature": -1.0}, "temperature must be >= 0, got -1.0"),
        ([[1]], {"temperature": float("nan")}, "temperature must be >= 0, got nan"),
        ([[1]], {"top_k": 0}, "top_k must be >= 1, got 0"),
        ([[1]], {"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ([[1]], {"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
    ],
)
def test_bad_input(model: LanguageModel, prompts: list[list[int]], options: dict, says: str):
    with pytest.raises(ValueError, match=says):
        generate(model, prompts, 3, **options)
    with pytest.raises(ValueError, match="max_new_tokens must be >= 0, got -1"):
        generate(model, [[1]], -1)


def test_prompts_may_be_tensors_and_must_be_ids(model: LanguageModel):
    ids = torch.tensor([[1, 2], [3, 4]])
    assert generate(model, ids, 5, seed=0) == generate(model, ids.tolist(), 5, seed=0)  # type: ignore[arg-type]
    for wrong in ([[1.7]], ["ab"], [1, 2]):
        with pytest.raises(ValueError, match=r"prompts\[0\] must be a sequence of token ids"):
            generate(model, wrong, 5)  # type: ignore[arg-type]


def test_a_tiny_temperature_is_no_infinity(model: LanguageModel):
    assert generate(model, PROMPTS, 5, temperature=1e-40) == generate(model, PROMPTS, 5, temperature=0)

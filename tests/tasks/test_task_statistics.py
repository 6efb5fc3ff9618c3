"""The laws that the generators draw from: counts against what the rules say, within 4.5 standard deviations."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from longstream.tasks import _generated as generated
from longstream.tasks import make_task
from longstream.tasks._base import Split
from tests.tasks.solvers import solve


def assert_law(found: Any, law: dict[Any, float]):
    """``found``, drawn independently, has the outcomes of ``law``, as often as it says.

    4.5 standard deviations are passed once in 150,000 counts.
    """
    counts = Counter(found)
    n = sum(counts.values())
    assert sum(law.values()) == pytest.approx(1)
    assert set(counts) <= {outcome for outcome, p in law.items() if p > 0}
    for outcome, p in law.items():
        assert abs(counts[outcome] - n * p) <= 4.5 * math.sqrt(n * p * (1 - p)) + 0.5, (outcome, counts[outcome], n * p)


def uniform(outcomes: Any):
    outcomes = list(outcomes)
    return dict.fromkeys(outcomes, 1 / len(outcomes))


def tuples(array: np.ndarray):
    return [tuple(row) for row in array.tolist()]


# what all draw with


@pytest.mark.parametrize("few", [0, 16], ids=["many", "few"])
@pytest.mark.parametrize(("size", "high"), [(1, 6), (2, 6), (3, 6), (4, 6), (3, 3)])
def test_distinct_draws_are_uniform(monkeypatch: pytest.MonkeyPatch, few: int, size: int, high: int):
    monkeypatch.setattr(generated, "_FEW", few)
    drawn = generated.draw_distinct(np.random.default_rng(0), 20000, size, 2, 2 + high)
    assert_law(tuples(drawn), uniform(itertools.permutations(range(2, 2 + high), size)))


def test_many_distinct_draws_are_distinct():
    for size in (17, 40, 60, 100):
        drawn = generated.draw_distinct(np.random.default_rng(1), 200, size, 5, 105)
        assert drawn.shape == (200, size)
        assert drawn.min() >= 5
        assert drawn.max() < 105
        assert all(len(set(row)) == size for row in tuples(drawn))


def test_weighted_draws_take_in_proportion_to_what_is_left():
    weights = np.array([5.0, 1.0, 3.0, 1.0])
    law = {
        (a, b, c): weights[a] / 10 * weights[b] / (10 - weights[a]) * weights[c] / (10 - weights[a] - weights[b])
        for a, b, c in itertools.permutations(range(4), 3)
    }
    assert_law(tuples(generated.draw_weighted(np.random.default_rng(2), 20000, 3, weights)), law)


def test_draw_one_is_uniform_among_the_allowed():
    allowed = np.tile([False, True, False, True, True], (9000, 1))
    assert_law(generated.draw_one(np.random.default_rng(3), allowed).tolist(), uniform([1, 3, 4]))


def test_first_places():
    keys = np.array([[7, 7, 3, 7, 3, 0], [1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0]])
    assert generated.first_places(keys).tolist() == [[0, 0, 2, 0, 2, 5], [0, 1, 2, 3, 4, 5], [0] * 6]
    assert generated.seen_before(keys).tolist()[0] == [False, True, False, True, True, False]
    rng = np.random.default_rng(4)
    keys = rng.integers(0, 30, (50, 40))
    assert generated.first_places(keys).tolist() == [[row.index(key) for key in row] for row in keys.tolist()]


# the tasks


@pytest.mark.parametrize("power", [0.01, 1.0])
def test_mqar_gaps_follow_the_power_law_without_replacement(power: float):
    task = make_task(f"mqar:vocabulary=64,seq_len=14,num_pairs=2,power={power}")
    inputs, _ = task.make(30000, 0)
    tail = inputs[:, 4::2]  # (N, 5): places where keys can be asked
    assert not inputs[:, 5::2].any()
    gaps = [(tail == inputs[:, key, None]).argmax(axis=1) for key in (0, 2)]  # of the first pair, the second
    p = np.arange(1, 6) ** (power - 1.0)
    p /= p.sum()
    law = {(a, b): p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations(range(5), 2)}
    assert_law(zip(*(gap.tolist() for gap in gaps), strict=True), law)


def test_mqar_draws_keys_values_and_filler_evenly():
    inputs, _ = make_task("mqar:vocabulary=12,seq_len=20,num_pairs=2").make(20000, 1)
    assert_law(tuples(inputs[:, :4:2]), uniform(itertools.permutations(range(1, 6), 2)))
    assert_law(tuples(inputs[:, 1:4:2]), uniform(itertools.permutations(range(6, 12), 2)))
    inputs, _ = make_task("mqar:vocabulary=12,seq_len=20,num_pairs=2,random_fill=true").make(20000, 2)
    fill, keys = inputs[:, 5], np.sort(inputs[:, :4:2], axis=1)  # at an odd place stands no query
    rank = fill - (fill[:, None] > keys).sum(axis=1)  # among the tokens that are not keys
    assert_law(rank.tolist(), uniform(range(1, 10)))
    assert not (fill[:, None] == keys).any()


def test_associative_recall_asks_for_each_different_key_as_often():
    task = make_task("associative_recall:vocabulary=6,seq_len=10")  # 2 keys, 2 values
    inputs, labels = task.make(20000, 0)
    keys, values, asked = inputs[:, :8:2], inputs[:, 1:8:2], inputs[:, -1]
    assert_law(tuples(keys), uniform(itertools.product(range(2), repeat=4)))
    lone = keys.sum(axis=1) == 1  # one key thrice, the other once
    assert_law(asked[lone].tolist(), uniform(range(2)))
    assert_law(asked[~keys.any(axis=1)].tolist(), {0: 1.0})
    both = keys.any(axis=1) & (keys == 0).any(axis=1)
    first = [np.where(keys[both] == key, values[both], 0).max(axis=1).tolist() for key in range(2)]
    assert_law(zip(*first, strict=True), uniform(itertools.product([2, 3], repeat=2)))
    assert_law(labels[:, -1].tolist(), uniform([2, 3]))


def test_associative_recall_of_any_key_finds_it_absent_as_often_as_it_is():
    inputs, labels = make_task("associative_recall:vocabulary=8,seq_len=10,absent=true").make(20000, 0)
    assert_law(inputs[:, -1].tolist(), uniform(range(3)))
    absent = (2 / 3) ** 4
    assert_law((labels[:, -1] == 6).tolist(), {True: absent, False: 1 - absent})


def test_associative_recall_words_are_uniform():
    inputs, _ = make_task("associative_recall:vocabulary=6,seq_len=9,key_len=2").make(10000, 0)
    assert_law(tuples(inputs[:, [0, 1, 3, 4]]), uniform(itertools.product(range(2), repeat=4)))


def test_induction_heads_places_are_uniform():
    inputs, labels = make_task("induction_heads:vocabulary=5,seq_len=8,answer_len=2").make(20000, 0)
    assert_law((inputs[:, :6] == 4).argmax(axis=1).tolist(), uniform(range(4)))
    assert_law(tuples(labels[:, -2:]), uniform(itertools.product(range(4), repeat=2)))
    inputs, _ = make_task("induction_heads:vocabulary=5,seq_len=9,triggers=2").make(20000, 1)
    places = [tuple(np.flatnonzero(row == 4)) for row in inputs[:, :8]]
    assert_law(places, uniform(pair for pair in itertools.combinations(range(7), 2) if pair[1] - pair[0] > 1))


@pytest.mark.parametrize(("rules", "blank", "low", "body"), [("mad", 5, 0, 5), ("mamba", 0, 1, 6)])
def test_selective_copying_places_are_uniform(rules: str, blank: int, low: int, body: int):
    task = make_task(f"selective_copying:vocabulary=7,seq_len=8,num_tokens=2,rules={rules}")
    inputs, labels = task.make(20000, 0)
    places = [tuple(np.flatnonzero(row != blank)) for row in inputs[:, :body]]
    assert_law(places, uniform(itertools.combinations(range(body), 2)))
    assert_law(tuples(labels[:, -2:]), uniform(itertools.product(range(low, low + 5), repeat=2)))


def test_copying_symbols_are_uniform():
    inputs, _ = make_task("copying:vocabulary=6,num_tokens=3,delay=2").make(20000, 0)
    assert_law(tuples(inputs[:, :3]), uniform(itertools.product(range(4), repeat=3)))


@pytest.mark.parametrize("multi_query", [True, False])
def test_in_context_recall_is_uniform(multi_query: bool):
    task = make_task(f"in_context_recall:vocabulary={5 - multi_query},seq_len=10,multi_query={multi_query}")
    inputs, labels = task.make(20000, 0)
    keys, asked = inputs[:, :8:2], inputs[:, -2 if multi_query else -1]
    assert_law(tuples(keys), uniform(itertools.product(range(2), repeat=4)))
    assert_law(asked[keys.sum(axis=1) == 1].tolist(), uniform(range(2)))
    assert_law(labels[:, 8 if multi_query else 9].tolist(), uniform([2, 3]))


def test_noisy_recall_has_its_share_of_noise():
    task = make_task("noisy_recall:vocabulary=7,noise_vocabulary=3,seq_len=10,noise=0.4")
    inputs, _ = task.make(20000, 0)
    noisy = inputs[:, :8:2] >= 4
    law = dict.fromkeys(itertools.product([False, True], repeat=4), 0.0)
    for pairs in law:  # each pair is noise with probability 0.4, but for one of them, each as likely
        for kept in range(4):
            rest = [pair for i, pair in enumerate(pairs) if i != kept]
            law[pairs] += (not pairs[kept]) / 4 * math.prod(0.4 if pair else 0.6 for pair in rest)
    assert_law(tuples(noisy), law)
    assert_law(tuples(inputs[noisy[:, 0], :2]), uniform(itertools.product(range(4, 7), repeat=2)))
    clean = inputs[~noisy[:, 0] & ~noisy[:, 1]]
    assert_law(tuples(clean[:, :4:2]), uniform(itertools.product(range(2), repeat=2)))
    lone = inputs[(noisy.sum(axis=1) == 3)]
    assert (lone[:, -2:] == lone[:, :8].reshape(-1, 4, 2)[~noisy[noisy.sum(axis=1) == 3]]).all()


@pytest.mark.parametrize("split", ["train", "test"])
def test_fuzzy_recall_words_are_uniform(split: Split):
    task = make_task("fuzzy_recall:vocabulary=8,key_len=2,value_len=3,seq_len=20")
    inputs, _ = task.make(20000, 0, split)
    runs = [[list(run) for _, run in itertools.groupby(row.tolist(), lambda token: token < 3)][:2] for row in inputs]
    for length, tokens, words in ((2, range(3), [run[0] for run in runs]), (3, range(3, 7), [run[1] for run in runs])):
        fixed = split == "test" and length == 2
        sizes = [length] if fixed else list(range(1, length + 1))
        law = {
            word: 1 / len(sizes) / math.perm(len(tokens), size)
            for size in sizes
            for word in itertools.permutations(tokens, size)
        }
        assert_law(map(tuple, words), law)


def test_fuzzy_recall_asks_last_for_each_different_key_as_often():
    task = make_task("fuzzy_recall:vocabulary=5,key_len=1,value_len=1,seq_len=8")  # keys 0 and 1, three pairs and one
    inputs, _ = task.make(20000, 0)
    keys = inputs[:, :6:2]
    assert_law(tuples(keys), uniform(itertools.product(range(2), repeat=3)))
    assert_law(inputs[keys.sum(axis=1) == 1, 6].tolist(), uniform(range(2)))


def test_fuzzy_recall_fills_its_length():
    task = make_task("fuzzy_recall:vocabulary=16,seq_len=64")
    inputs, _ = task.make(2000, 0)
    pads = (inputs == 15).sum(axis=1)
    assert pads.max() < 2 * 6, "another pair would fit"
    assert len(solve(task, inputs[0])) >= 1


def test_compression_asks_in_every_order():
    inputs, _ = make_task("compression:vocabulary=4,num_tokens=3").make(20000, 0)
    assert_law(tuples(inputs[:, 4:]), uniform(itertools.permutations(range(4, 7))))
    assert_law(tuples(inputs[:, :3]), uniform(itertools.product(range(3), repeat=3)))


def test_memorization_asks_for_all_facts():
    inputs, _ = make_task("memorization:vocabulary=9,seq_len=4").make(20000, 0)
    assert_law(tuples(inputs[:, ::2]), uniform(itertools.product(range(4), repeat=2)))


def test_keys_that_are_absent_are_part_of_chance():
    """To answer always that the key is absent is right as often as `chance` says, where that is the best guess."""
    task = make_task("associative_recall:vocabulary=40,seq_len=16,absent=true")
    labels = task.make(20_000, 0)[1][:, -1]
    assert np.mean(labels == 38) == pytest.approx(task.chance, abs=0.01)
    assert task.chance == pytest.approx((18 / 19) ** 7)

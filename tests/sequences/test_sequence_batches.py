"""Items, their order, and how they are padded."""

import numpy as np
import pytest
import torch

from longstream.sequences import Collator, LengthBuckets, SequenceDataset, Sequences, class_weights, label_numbers
from longstream.sequences.normalize import measure
from tests.sequences.small import small_data, small_model


class Items:
    def __init__(self, lengths):
        self.lengths = np.asarray(lengths)

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return index


def test_windows_are_every_piece_of_a_series_with_what_follows_it():
    values = [np.arange(T, dtype=np.float32)[:, None] * [1, 100] for T in (9, 4, 2)]
    data = Sequences(values, channels=("a", "b"))
    model = small_model(data=data, task="forecast", target_channels=["b"], horizon=3)
    items = SequenceDataset(data, model.config, seq_len=5)
    assert len(items) == 4 + 1 + 1
    assert items.lengths.tolist() == [5, 5, 5, 5, 3, 1]
    starts = [int(items[i]["values"][0, 0]) for i in range(len(items))]
    assert starts == [0, 1, 2, 3, 0, 0]
    np.testing.assert_array_equal(items[1]["values"][:, 0], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(items[1]["targets"][:, 0], [200, 300, 400, 500, 600, 700, 800])
    np.testing.assert_array_equal(items[3]["targets"][:, 0], [400, 500, 600, 700, 800])  # the series ends
    batch = Collator(model.config)([items[i] for i in (3, 4)])
    assert batch["values"].shape == (2, 5, 2)
    assert batch["targets"].shape == (2, 7, 1)
    assert batch["targets"][0, 5:].isnan().all()
    assert batch["targets"][1, 3:].isnan().all()
    assert batch["mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    np.testing.assert_array_equal(items[2]["past"][:, 0], [0, 1])  # as much as there is, at most another window
    assert batch["past"].shape == (2, 3, 2)
    assert batch["past_mask"].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert "past" not in Collator(model.config)([items[0], items[4]])
    assert "past" not in SequenceDataset(data, model.config, seq_len=5, past=0)[2]
    assert len(SequenceDataset(data, model.config, seq_len=5, past=1)[3]["past"]) == 1
    limited = small_model("hyena", data, task="forecast", seq_len=5)
    assert "past" not in SequenceDataset(data, limited.config, seq_len=5)[2]
    with pytest.raises(ValueError, match="seq_len must be >= 1"):
        SequenceDataset(data, model.config)
    with pytest.raises(ValueError, match="'1' has 1"):
        SequenceDataset(Sequences([values[0], values[1][:1]], channels=("a", "b")), model.config, seq_len=5)


def test_a_batch_is_padded_to_its_longest():
    data = small_data()
    model = small_model(data=data)
    items = SequenceDataset(data, model.config, weights=np.arange(12.0))
    batch = Collator(model.config)([items[i] for i in (0, 1, 5)])
    lengths = data.lengths[[0, 1, 5]]
    assert batch["values"].shape == (3, lengths.max(), 3)
    assert batch["mask"].sum(1).tolist() == lengths.tolist()
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["weights"].tolist() == [0, 1, 5]
    assert "mask" not in Collator(model.config)([items[3], items[3]])


@pytest.mark.parametrize("n", [3, 8, 100, 1000])
def test_every_item_comes_once_a_pass(n):
    items = LengthBuckets(Items(np.arange(n) % 7), 100 * n, 8, seed=3)
    together = int(np.lcm(n, items.block))  # where blocks and passes end together
    assert together <= len(items)
    assert (np.bincount([items[i] for i in range(together)]) == together // n).all()
    one_pass = np.bincount([items[i] for i in range(n)], minlength=n)
    assert one_pass.max() <= (3 if n < 8 else 2)


def test_a_batch_has_like_lengths_and_chance_remains():
    lengths = np.random.default_rng(0).integers(1, 1000, 2000)
    items = LengthBuckets(Items(lengths), 4000, 16, seed=0)
    order = np.array([items[i] for i in range(4000)]).reshape(-1, 16)
    waste = 1 - lengths[order].sum() / (lengths[order].max(1) * 16).sum()
    shuffled = np.random.default_rng(1).permutation(4000).reshape(-1, 16) % 2000
    assert waste < 0.05 < 0.4 < 1 - lengths[shuffled].sum() / (lengths[shuffled].max(1) * 16).sum()
    means = lengths[order].max(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # batches are not in the order of lengths
    first, second = order[:62].tolist(), order[125:187].tolist()
    assert sum(batch in second for batch in first) < 3


def test_an_item_depends_on_seed_and_number_only():
    lengths = np.random.default_rng(0).integers(1, 50, 90)
    items = LengthBuckets(Items(lengths), 1000, 8, seed=5)
    order = [items[i] for i in range(1000)]
    again = LengthBuckets(Items(lengths), 2000, 8, seed=5)
    for i in (999, 3, 500, 501, 0):
        assert again[i] == order[i]
    assert [LengthBuckets(Items(lengths), 1000, 8, seed=6)[i] for i in range(50)] != order[:50]
    with pytest.raises(IndexError):
        items[1000]


def test_class_weights_balance():
    labels = np.array(list("aaabbc"))
    weights = class_weights(labels, ["a", "b", "c", "d"])
    torch.testing.assert_close(weights, torch.tensor([6 / 9, 1.0, 2.0, 0.0]))
    shares = [(labels == name).sum() * float(weight) for name, weight in zip("abc", weights, strict=False)]
    assert shares == pytest.approx([2, 2, 2])


def test_labels_never_seen_are_named():
    data = small_data()
    assert label_numbers(data, ["class 2", "class 0", "class 1"])[:3].tolist() == [1, 2, 0]
    with pytest.raises(ValueError, match=r"never seen in training: \['class 1', 'class 2'\]; the model knows"):
        label_numbers(data, ["class 0", "other"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": ("a", "b", "x")}, r"must have the channels \['a', 'b', 'c'\]"),
        ({"labels": None}, "must have labels"),
        ({"weights": np.ones(3)}, "weights must be 12 numbers >= 0"),
        ({"weights": -np.ones(12)}, "weights must be 12 numbers >= 0"),
    ],
)
def test_data_that_do_not_fit(change, message):
    data, config = small_data(), small_model().config
    fields = {"channels": data.channels, "labels": data.labels, **change}
    weights = fields.pop("weights", None)
    with pytest.raises(ValueError, match=message):
        SequenceDataset(Sequences(data.values, **fields), config, weights=weights)


def test_images_of_two_sizes_are_no_batch():
    random = np.random.default_rng(0)
    images = [random.normal(size=(4, size, 1)).astype(np.float32) for size in (3, 3, 5)]
    data = Sequences(images, labels=np.array(list("aba")))
    model = small_model("hgrn", data, options={"direction": "2d"})
    items = SequenceDataset(data, model.config)
    with pytest.raises(ValueError, match="images of a batch must have one size"):
        Collator(model.config)([items[0], items[2]])


def test_the_scale_of_values_far_from_zero():
    values = [np.float32(1e7) + np.arange(-3, 4, dtype=np.float32)[:, None]]
    mean, std = measure(values)
    assert mean[0] == 1e7
    assert std[0] == pytest.approx(2)
    assert measure([np.full((3, 1), np.nan, np.float32)]) == (0, 1)

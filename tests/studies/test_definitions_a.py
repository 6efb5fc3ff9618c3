"""The studies that vary one network: what they declare can be built, is of equal size, and answers what is asked."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longstream.studies import depth_vs_state, expansion, heads, hgrn1_vs_hgrn2, hybrid, language, lower_bound, measures
from longstream.studies.language import BYTES
from longstream.studies.study import LEAST_STEPS, Plan, Result, Run, Study, half_of
from longstream.studies.variants import Variant, declare, declare_at_one_rate, merged
from longstream.tasks import make_task
from longstream.train.models import build_model, count
from longstream.train.run import train
from longstream.train.settings import Settings, build_settings

STUDIES = {
    module.STUDY.name: module.STUDY
    for module in (depth_vs_state, expansion, heads, hgrn1_vs_hgrn2, hybrid, lower_bound)
}
ALL = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
MOST_MINUTES = 60  # of one core, at small scale


def settings_of(run: Run) -> Settings:
    return build_settings(run.settings, {"train.seed": run.seed, "train.threads": 1})


def parameters_of(run: Run) -> int:
    settings = settings_of(run)
    if settings.data.task == "tokens":
        task = make_task(settings.data.generator)
        return count(settings.model, task.vocab_size, task.length)
    return count(settings.model, BYTES, settings.data.seq_len)


def whole(study: Study, plan: Plan) -> list[Run]:
    """All runs of a study, where of several rates the last one is best."""
    runs: list[Run] = []
    while len(declared := list(study.runs(plan, [_done(run) for run in runs]))) > len(runs):
        runs = declared
    return runs


def _done(run: Run) -> Result:
    return Result(run, "done", {"loss": -float(run.settings["train.learning_rate"])})


@ALL
def test_runs_have_names_of_their_own_and_all_seeds(study):
    plan = Plan(seeds=(3, 5))
    runs = whole(study, plan)
    assert len({run.name for run in runs}) == len(runs)
    for group, variant in {(run.group, run.variant) for run in runs}:
        of = [run for run in runs if (run.group, run.variant) == (group, variant)]
        assert {run.seed for run in of} == {3, 5}
        best = max(of, key=lambda run: run.settings["train.learning_rate"])
        assert [run.choice for run in of if run.seed == 5] == [best.choice]


@ALL
def test_runs_depend_on_the_plan_alone(study):
    assert whole(study, Plan(seeds=(0,))) == whole(study, Plan(seeds=(0,)))


@ALL
@pytest.mark.parametrize("scale", ["small", "medium"])
def test_sides_of_a_comparison_have_equal_parameters(study, scale):
    plan = Plan(scale=scale, seeds=(0,))
    sizes: dict[str, dict[str, int]] = {}
    for run in whole(study, plan):
        sizes.setdefault(run.group, {})[run.variant] = parameters_of(run)
    for group, of in sizes.items():
        assert max(of.values()) <= 1.02 * min(of.values()), (group, of)


@ALL
def test_claims_pictures_and_figures_name_what_there_is(study):
    runs = whole(study, Plan(seeds=(0,)))
    known, groups = {(run.group, run.variant) for run in runs}, {run.group for run in runs}
    keys = {metric.key for metric in study.metrics}
    for claim in study.claims:
        assert {(claim.group, claim.better), (claim.group, claim.worse)} <= known, claim
        assert claim.metric in keys, claim
    for picture in study.pictures:
        assert picture.metric in keys, picture
        assert set(picture.groups) <= groups, picture
    assert {metric.group for metric in study.metrics} - {""} <= groups
    assert all(each.comparable or each.note for each in study.published)


@ALL
def test_budget_shortens_runs_and_nothing_else(study):
    full, short = (whole(study, Plan(seeds=(0,), factor=factor)) for factor in (1.0, 0.01))
    for before, after in zip(full, short, strict=True):
        steps = before.settings["train.steps"]
        assert after.settings["train.steps"] == max(LEAST_STEPS, round(steps * 0.01))
        assert replace(after, settings=before.settings) == before
        assert {**after.settings, "train.steps": steps} == dict(before.settings)


@ALL
def test_small_scale_fits_its_time(study):
    minutes = sum(run.minutes for run in whole(study, Plan()))
    assert minutes < MOST_MINUTES
    assert study.minutes["small"] == pytest.approx(minutes / 2, rel=0.25)  # on two cores


@ALL
def test_networks_of_the_small_scale_can_be_built(study):
    seen = set()
    for run in whole(study, Plan(seeds=(0,))):
        settings = settings_of(run)
        if settings.model in seen:
            continue
        seen.add(settings.model)
        with torch.device("meta"):
            build_model(settings.model, vocab_size=BYTES, boundary_id=0, seq_len=64)


def test_expansion_has_every_state_from_1_to_512():
    runs = whole(expansion.STUDY, Plan(seeds=(0,)))
    assert {run.x for run in runs} == {2.0**k for k in range(10)}
    assert {run.settings["model.expand_ratio"] for run in runs} == {2**k for k in range(10)}
    large = whole(expansion.STUDY, Plan(scale="medium", seeds=(0,)))
    medium = {run.x for run in large if run.group == expansion.LANGUAGE_512}
    assert medium == {2.0**k for k in range(10)}


def test_equal_time_is_steps_by_cost():
    runs = {(run.group, run.variant): run for run in whole(depth_vs_state.STUDY, Plan(seeds=(0,)))}
    for (layers, n), cost in depth_vs_state.COST["small"].items():
        name = depth_vs_state.name_of(layers, n)
        steps = [runs[group, name].settings["train.steps"] for group in (depth_vs_state.TEXT, depth_vs_state.TIMED)]
        assert steps[1] == pytest.approx(steps[0] / cost, abs=1)


def test_rates_are_swept_on_the_first_seed_and_the_best_goes_on():
    variant = Variant(group="g", name="v", settings={"train.steps": 100}, rates=(1e-3, 1e-2), minutes=1.0)
    plan = Plan(seeds=(0, 1))
    tried = declare([variant], plan, [])
    assert [(run.seed, run.choice) for run in tried] == [(0, "lr=0.001"), (0, "lr=0.01")]
    done = [Result(tried[0], "done", {"loss": 2.0}), Result(tried[1], "diverged", {})]
    assert [(run.seed, run.choice) for run in declare([variant], plan, done)[2:]] == [(1, "lr=0.001")]


@pytest.mark.parametrize(
    ("losses", "chosen"), [((1.0, 2.0, 3.0, 2.5), "lr=0.001"), ((1.0, 2.0, 3.0, 1.5), "lr=0.01"), ((1.0,) * 4, None)]
)
def test_pilots_choose_the_rate_of_their_group_together(losses, chosen):
    shape = {"settings": {"train.steps": 100}, "rates": (1e-3, 1e-2), "minutes": 1.0}
    variants = [Variant(group="g", name=name, **shape) for name in ("small", "a", "large")]
    plan, pilots = Plan(seeds=(0, 1)), {"g": ("small", "large")}
    tried = declare_at_one_rate(variants, plan, [], pilots)
    assert [(run.variant, run.choice) for run in tried] == [
        *(("small", "lr=0.001"), ("small", "lr=0.01"), ("large", "lr=0.001"), ("large", "lr=0.01"))
    ]
    done = [Result(run, "done", {"loss": loss}) for run, loss in zip(tried, losses, strict=True)]
    if chosen is None:  # one diverged at the higher rate
        chosen, done[3] = "lr=0.001", Result(tried[3], "diverged", {})
    later = [(run.variant, run.seed, run.choice) for run in declare_at_one_rate(variants, plan, done, pilots)[4:]]
    assert later == [("a", 0, chosen), ("small", 1, chosen), ("a", 1, chosen), ("large", 1, chosen)]


def test_lists_of_options_are_put_together():
    assert merged({"a": ("x=1",), "b": 1}, {"a": ("y=2",), "b": 2}) == {"a": ("x=1", "y=2"), "b": 2}


TINY = {
    "model.num_hidden_layers": 2,
    "model.intermediate_size": 16,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.eval_every": 0,
    "train.save_every": 0,
    "train.sample_tokens": 0,
    "train.threads": 1,
}


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on text, of two layers with states of 16 x 4 x 4 each."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "a.txt").write_bytes(b"a word, and then another word. " * 400)
    data = {"data.files": [str(folder / "a.txt")], "data.seq_len": 32}
    train(build_settings(TINY, data, {"model.hidden_size": 16, "model.expand_ratio": 4}), folder / "run")
    return folder / "run"


def test_state_is_what_the_model_says(text_run):
    model = measures.load(text_run)
    assert measures.state_bytes(model, 5) == 2 * 4 * (4 * 4 * 4) + 8  # layers x float32 x (H K V), and the position
    assert measures.state_bytes(model, 50) == measures.state_bytes(model, 5)


def test_activations_grow_with_tokens_and_leave_parameters_out(text_run):
    model = measures.load(text_run)
    one, two = (measures.activation_bytes(model, length) for length in (128, 256))
    assert 1.8 < two / one < 2.2
    # At least what enters and leaves the layers: 3 norms and 8 matrices of 16 float32 a token and layer.
    assert one > 128 * 2 * 8 * 16 * 4
    assert all(parameter.grad is None for parameter in model.parameters())


def test_activations_of_one_layer_by_hand():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = type("Config", (), {"vocab_size": 7})()
            self.table, self.head = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7, bias=False)

        def forward(self, input_ids, labels, use_cache):
            x = self.table(input_ids).sigmoid()
            return type("Output", (), {"loss": self.head(x).square().sum()})()

    # ids (8 bytes), the sigmoid (4 floats; also the input of the head), the logits (7 floats); not the matrices.
    assert measures.activation_bytes(Model(), 10) == 10 * (8 + 4 * 4 + 7 * 4)  # type: ignore[arg-type]


def test_speeds_are_of_a_core_and_leave_threads_as_they_were(text_run):
    before = torch.get_num_threads()
    model = measures.load(text_run)
    found = measures.speeds({"a": model, "b": model}, length=32, rows=1, decoded=2)
    assert torch.get_num_threads() == before
    assert set(found) == {"a", "b"}
    assert all(value > 0 and math.isfinite(value) for of in found.values() for value in of.values())


def test_costs_are_of_runs_that_are_there(text_run):
    runs = [Run(group="g", variant=v, seed=0, settings={}) for v in ("there", "gone")]
    text_run.rename(text_run.with_name(runs[0].name))
    try:
        found = measures.costs_of(runs, text_run.parent, length=32, rows=1)
    finally:
        text_run.with_name(runs[0].name).rename(text_run)
    assert set(found) == {("g", "there")}
    timed = {half_of(key) for key in ("training_us", "decoding_us")}
    assert set(found["g", "there"]) == {metric.key for metric in measures.COSTS} | timed


def test_losses_by_position_are_those_of_all_positions_together(text_run):
    coarse, fine, far = (measures.position_losses(text_run, edges) for edges in ((32,), (4, 16, 32), (32, 64)))
    assert set(fine) == {"bits_to_4", "bits_to_16", "bits_to_32", "bits_equal"}
    together = (4 * fine["bits_to_4"] + 12 * fine["bits_to_16"] + 16 * fine["bits_to_32"]) / 32
    assert coarse["bits_to_32"] == pytest.approx(together, rel=1e-9)
    assert fine["bits_equal"] == coarse["bits_to_32"]
    # What is near does not depend on how far one looks; what is further comes from longer windows.
    assert {key: far[key] for key in coarse} == coarse
    assert far["bits_to_64"] > 0


@ALL
def test_a_report_says_what_short_runs_are_given(study):
    assert language.SHORT_NOTE in study.notes

"""From a folder with a model to what can be seen of it."""

from __future__ import annotations

from longstream.inspect.cost import measure_cost
from longstream.inspect.filters import measure_filters
from longstream.inspect.gates import measure_gates
from longstream.inspect.page import Inspection
from longstream.inspect.reach import measure_reach
from longstream.inspect.signs import cost_sign, instability_sign, recall_sign
from longstream.inspect.states import measure_ranks
from longstream.inspect.subject import Subject
from longstream.train.rundir import quiet_transformers
from longstream.train.token_evaluation import evaluate_examples


def inspect_model(subject: Subject) -> Inspection:
    """Measure all that there is to measure of a model on its data.

    Args:
        subject: of `longstream.inspect.read_subject`, or made of any model and inputs.
    """
    subject.model.eval()
    with quiet_transformers():
        gates, ranks, filters = measure_gates(subject), measure_ranks(subject), measure_filters(subject)
        reach, cost = measure_reach(subject), measure_cost(subject)
        accuracy = None if subject.examples is None else evaluate_examples(subject.model, subject.examples).accuracy
    signs = [
        recall_sign(
            reach,
            subject.trained_length or subject.length,
            subject.unit,
            gates=gates,
            ranks=ranks,
            filters=filters,
            kinds=cost.kinds,
            accuracy=accuracy,
            chance=subject.chance,
        ),
        cost_sign(cost, ranks),
        instability_sign(subject.metrics),
    ]
    return Inspection(subject, gates, ranks, reach, filters, cost, signs, accuracy)

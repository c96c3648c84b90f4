"""What every metric refuses of a dataset, and what an evaluator makes of two metrics with one key."""

from __future__ import annotations

import pytest

from bevstack.errors import InputError
from bevstack.evaluation import (
    BehaviourMetric,
    CenterDistanceMetric,
    ImageKeypointMetric,
    KeypointMetric,
    WholeEvaluator,
)
from bevstack.evaluation.gathering import GatheredMetric


@pytest.mark.parametrize("kind", [BehaviourMetric, CenterDistanceMetric, ImageKeypointMetric, KeypointMetric])
def test_classes_of_metric_and_dataset_are_the_same(kind):
    """Labels are numbers: read by a list in another order they give a plausible score. Other names share no label."""
    for labelled in (("car", "bus"), ("auto", "omnibus")):
        kind(classes=("car", "bus")).dataset_meta = {"classes": labelled}
    kind().dataset_meta = {"classes": ("bus", "car")}
    for labelled in (("bus", "car"), ("car", "bus", "truck"), ("car",)):
        with pytest.raises(InputError, match=rf"{kind.__name__}: classes: \['car', 'bus'\], but the dataset labels by"):
            kind(classes=("car", "bus")).dataset_meta = {"classes": labelled}


class Answers(GatheredMetric):
    """Gives what it is told to give."""

    def __init__(self, **answer: float) -> None:
        super().__init__()
        self.answer = answer

    def process(self, data_batch, data_samples) -> None:
        pass

    def compute_metrics(self, results: list) -> dict[str, float]:
        return self.answer


def test_two_metrics_of_one_key_are_told_apart():
    # Expected: nothing of hours of predictions is lost; the second metric's key says its place.
    evaluator = WholeEvaluator([Answers(a=1.0, b=2.0), Answers(b=3.0, c=4.0)])
    assert evaluator.evaluate(0) == {"a": 1.0, "b": 2.0, "1/b": 3.0, "c": 4.0}

"""Scores of the scene head, counted by hand."""

from __future__ import annotations

import pytest
import torch

from bevstack.errors import InputError
from bevstack.evaluation import SceneMetric
from bevstack.structures import BEVDataSample

NAMES = {"time": ("day", "night"), "location": ("boston", "queenstown", "onenorth")}


def sample_of(token, scene, truth: dict, **probabilities):
    sample = BEVDataSample(metainfo={"token": token, "scene_token": scene})
    sample.gt_scene = truth
    sample.pred_scene = {
        task: {"names": NAMES[task], "probabilities": torch.tensor(values)} for task, values in probabilities.items()
    }
    return sample


def evaluate(samples):
    metric = SceneMetric()
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def test_by_hand():
    # time: truth n n n d d, answers n d d d n. By sample 2 of 5; F1 of night 2 * 1 / (3 + 2) = 0.4, of day
    # 2 * 1 / (2 + 3) = 0.4. By scene: a has one night, two days -> day, wrong; b one day, one night, sums 1.2 to 0.8
    # -> day, right: 1 of 2; F1 of day 2 * 1 / (1 + 2) = 2 / 3, of night 0. Commonest: 3 nights of 5.
    rows = [("a", "night", 0.1), ("a", "night", 0.6), ("a", "night", 0.7), ("b", "day", 0.9), ("b", "day", 0.3)]
    samples = [
        sample_of(f"t{i}", scene, {"time": truth}, time=[day, 1 - day]) for i, (scene, truth, day) in enumerate(rows)
    ]
    assert evaluate(samples) == pytest.approx(
        {
            "scene_accuracy/time": 0.4,
            "scene_f1/time": 0.4,
            "scene_commonest/time": 0.6,
            "scene_accuracy_by_scene/time": 0.5,
            "scene_f1_by_scene/time": 1 / 3,
        }
    )


def test_places_that_are_unknown_or_absent():
    # "moon" is no class of the head: missed, and its F1 is 0. "onenorth" is neither true nor predicted: left out.
    # boston: 1 right, 1 moon taken for it: 2 * 1 / (1 + 2); queenstown: 1; moon: 0. The fourth has no truth.
    samples = [
        sample_of("a", "a", {"location": "boston"}, location=[0.5, 0.3, 0.2]),
        sample_of("b", "b", {"location": "moon"}, location=[0.8, 0.1, 0.1]),
        sample_of("c", "c", {"location": "queenstown"}, location=[0.1, 0.8, 0.1]),
        sample_of("d", "d", {"time": "day"}, location=[0.1, 0.8, 0.1]),
    ]
    metrics = evaluate(samples)
    assert metrics["scene_accuracy/location"] == metrics["scene_accuracy_by_scene/location"] == pytest.approx(2 / 3)
    assert metrics["scene_f1/location"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert metrics["scene_commonest/location"] == pytest.approx(1 / 3)
    assert not any(key.endswith("/time") for key in metrics)


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([sample_of("a", "a", {}, time=[1.0, 0.0])], "gt_scene: sample a has none: add LoadSceneLabels"),
        ([sample_of("a", "a", {"time": "day"})], "pred_scene: sample a has none"),
        ([sample_of("a", "a", {"time": "day"}, time=[float("nan"), 0.0])], "time: sample a has a probability that is"),
        ([sample_of("a", "a", {"time": "day"}, time=[1.0, 0.0])] * 2, "a: sample is there more than once"),
        ([sample_of("a", "a", {"weather": "dry"}, time=[1.0, 0.0])], "gt_scene: no sample has both truth and"),
    ],
    ids=["no-truth", "no-prediction", "nan", "twice", "nothing"],
)
def test_what_is_refused(samples, said):
    with pytest.raises(InputError, match=said):
        evaluate(samples)

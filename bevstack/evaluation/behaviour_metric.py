"""Macro-F1 of what agents are doing, on detections that found an agent and on the true boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torchmetrics.classification import MulticlassF1Score

from bevstack.errors import InputError
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.evaluation.submission import default_attribute
from bevstack.evaluation.true_objects import match_by_distance
from bevstack.registry import METRICS
from bevstack.structures.behaviour import BEHAVIOUR_GROUPS, BEHAVIOURS, behaviours_of
from bevstack.structures.boxes import box_tensor


class _Answer(NamedTuple):
    """One agent: what it does, what was predicted, what the default rule says ("" on true boxes)."""

    true: str
    predicted: str
    default: str


@METRICS.register_module()
class BehaviourMetric(GatheredMetric):
    """F1 of attributes, per group of classes and overall.

    A detection is compared with the true box that it found by nuScenes' rule: of its class, nearest in the plane and
    nearer than 2 m; better scores choose first, and a true box is found once. Boxes without attribute count nothing.

    ``behaviour_f1/<group>`` is the mean over the group's attributes that occur (in truth or prediction),
    ``behaviour_f1`` the mean over all groups' attributes; ``behaviour_f1_default`` and ``behaviour_f1_default/<group>``
    are the same for the rule by class and detected speed that stands in where nothing predicts attributes;
    ``behaviour_matched`` is the number of detections compared. Where a head also predicts on true boxes
    (``pred_on_truth_3d``), ``behaviour_f1_on_truth`` and ``behaviour_f1_on_truth/<group>``. NaN where nothing could be
    compared.

    Args:
        max_distance_m: of a detection to the box that it found.
        classes: names of the labels; None takes the dataset's ``metainfo["classes"]``.

    Raises:
        InputError: no attributes were predicted, or one that the box's class cannot have; a sample comes twice.
    """

    def __init__(self, max_distance_m: float = 2.0, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self.max_distance_m = max_distance_m
        self._classes = None if classes is None else tuple(classes)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep the attributes of one batch's boxes, true, predicted and by the default rule, side by side."""
        for sample in map(as_dict, data_samples):
            classes = self.named_classes(self._classes or sample.get("classes"))
            found = self._of_detections(sample, classes)
            self.results.append((sample["token"], found, self._of_truth(sample, classes)))

    def _of_detections(self, sample: dict[str, Any], classes: Sequence[str]) -> list[_Answer]:
        predicted, true = sample["pred_instances_3d"], sample["gt_instances_3d"]
        if "attribute_names" not in predicted:
            reason = "the model predicts none: leave this metric out, or add a behaviour head"
            raise InputError("BehaviourMetric", "pred_instances_3d.attribute_names", reason)
        boxes = box_tensor(predicted["bboxes_3d"]).detach().cpu().double().numpy()
        labels = predicted["labels_3d"].detach().cpu().numpy()
        true_boxes = true["bboxes_3d"].tensor.detach().cpu().double().numpy()
        pairs = match_by_distance(
            boxes[:, :2], labels, predicted["scores_3d"].detach().cpu().numpy(),
            true_boxes[:, :2], true["labels_3d"].detach().cpu().numpy(), self.max_distance_m,
        )  # fmt: skip
        answers = []
        for row, true_row in pairs:
            name, speed = classes[labels[row]], float(np.hypot(*boxes[row, 7:9]))
            answer = _Answer(
                true["attribute_names"][true_row], predicted["attribute_names"][row], default_attribute(name, speed)
            )
            answers += self._comparable(answer, name, sample["token"])
        return answers

    def _of_truth(self, sample: dict[str, Any], classes: Sequence[str]) -> list[_Answer] | None:
        if "pred_on_truth_3d" not in sample:
            return None
        true, answers = sample["gt_instances_3d"], []
        predicted = sample["pred_on_truth_3d"]["attribute_names"]
        for name, guess, label in zip(true["attribute_names"], predicted, true["labels_3d"].tolist(), strict=True):
            if label >= 0:
                answers += self._comparable(_Answer(name, guess, ""), classes[label], sample["token"])
        return answers

    def _comparable(self, answer: _Answer, class_name: str, token: str) -> list[_Answer]:
        """The answer in a list, or an empty one where the true box has no attribute of its class."""
        possible = behaviours_of(class_name)
        if answer.true not in possible:
            return []
        if answer.predicted not in possible:
            reason = f"sample {token}: '{answer.predicted}' is no attribute of a {class_name}: {', '.join(possible)}"
            raise InputError("BehaviourMetric", "attribute_names", reason)
        return [answer]

    def compute_metrics(self, results: list[tuple[str, list[_Answer], list[_Answer] | None]]) -> dict[str, float]:
        """Scores of all samples' answers."""
        self.require_distinct(token for token, _, _ in results)
        found = [answer for _, answers, _ in results for answer in answers]
        true = [answer.true for answer in found]
        metrics = _scores("behaviour_f1", true, [answer.predicted for answer in found])
        metrics |= _scores("behaviour_f1_default", true, [answer.default for answer in found])
        metrics["behaviour_matched"] = float(len(found))
        if any(answers is not None for _, _, answers in results):
            on_truth = [answer for _, _, answers in results for answer in answers or ()]
            true, predicted = [answer.true for answer in on_truth], [answer.predicted for answer in on_truth]
            metrics |= _scores("behaviour_f1_on_truth", true, predicted)
        return metrics


def _scores(key: str, true: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """Macro-F1 overall as ``key`` and of each group as ``<key>/<group>``."""
    metrics = {key: _macro_f1(BEHAVIOURS, true, predicted)}
    for name, group in BEHAVIOUR_GROUPS.items():
        rows = [row for row, attribute in enumerate(true) if attribute in group.attributes]
        metrics[f"{key}/{name}"] = _macro_f1(group.attributes, [true[r] for r in rows], [predicted[r] for r in rows])
    return metrics


def _macro_f1(attributes: Sequence[str], true: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean F1 of the attributes that occur; NaN where nothing is compared."""
    if not true:
        return float("nan")
    target, guess = (torch.tensor([attributes.index(name) for name in names]) for names in (true, predicted))
    return MulticlassF1Score(len(attributes), average="macro")(guess, target).item()

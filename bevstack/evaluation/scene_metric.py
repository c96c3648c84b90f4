"""Accuracy and macro F1 of what kind of scene it is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from bevstack.errors import InputError
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.registry import METRICS


@METRICS.register_module()
class SceneMetric(GatheredMetric):
    """Accuracy and macro F1 of every task of ``pred_scene``, by sample and by scene (torchmetrics).

    ``scene_accuracy/<task>`` and ``scene_f1/<task>`` count samples. ``scene_accuracy_by_scene/<task>`` and
    ``scene_f1_by_scene/<task>`` count scenes, whose class is the one most of their samples got (of equally many, the
    one with the larger sum of probabilities): scenes are the independent examples. ``scene_commonest/<task>`` is the
    accuracy by sample of always answering the class that is commonest here: what a head must beat. F1 is the mean over
    the classes that are true or predicted at least once. A true class that the head does not know counts as missed; a
    sample without truth for a task counts in nothing of it.

    Raises:
        InputError: a field is missing, probabilities are not finite, a sample comes twice, nothing has truth.
    """

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep the true class and the probabilities of every task of one batch's samples."""
        for sample in map(as_dict, data_samples):
            token = str(sample.get("token"))
            for field, advice in (("gt_scene", "add LoadSceneLabels to the pipeline"), ("pred_scene", "no such head")):
                if not sample.get(field):
                    raise InputError("SceneMetric", field, f"sample {token} has none: {advice}")
            answers = {}
            for task, answer in sample["pred_scene"].items():
                probabilities = answer["probabilities"].detach().double().cpu()
                if not torch.isfinite(probabilities).all():
                    raise InputError("SceneMetric", task, f"sample {token} has a probability that is not finite")
                if sample["gt_scene"].get(task) is not None:
                    answers[task] = (sample["gt_scene"][task], tuple(answer["names"]), probabilities)
            self.results.append((token, sample.get("scene_token", token), answers))

    def compute_metrics(self, results: list[tuple[str, str, dict]]) -> dict[str, float]:
        """Accuracy and macro F1 of every task, by sample and by scene, and how often its commonest class is true."""
        self.require_distinct(token for token, _, _ in results)
        by_task: dict[str, list[tuple[str, str, tuple[str, ...], Tensor]]] = defaultdict(list)
        for _, scene, answers in results:
            for task, answer in answers.items():
                by_task[task].append((scene, *answer))
        if not by_task:
            raise InputError("SceneMetric", "gt_scene", "no sample has both truth and prediction of a task")
        metrics: dict[str, float] = {}
        for task, rows in by_task.items():
            names = list(rows[0][2])
            names += sorted({true for _, true, _, _ in rows} - set(names))
            truth = torch.tensor([names.index(true) for _, true, _, _ in rows])
            predicted = torch.stack([probabilities.argmax() for *_, probabilities in rows])
            scenes = [scene for scene, *_ in rows]
            probabilities = torch.stack([probabilities for *_, probabilities in rows])
            metrics |= self._scores(task, "", predicted, truth, len(names))
            metrics[f"scene_commonest/{task}"] = truth.bincount().max().item() / len(truth)
            firsts, voted = majority(scenes, predicted, probabilities)
            metrics |= self._scores(task, "_by_scene", voted, truth[firsts], len(names))
        return metrics

    @staticmethod
    def _scores(task: str, suffix: str, predicted: Tensor, truth: Tensor, number: int) -> dict[str, float]:
        accuracy = multiclass_accuracy(predicted, truth, number, average="micro")
        f1 = multiclass_f1_score(predicted, truth, number, average="macro")
        return {f"scene_accuracy{suffix}/{task}": accuracy.item(), f"scene_f1{suffix}/{task}": f1.item()}


def majority(groups: Sequence[str], predicted: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The class that most members of each group got.

    Args:
        groups: (n) of each member; predicted: (n,) classes; probabilities: (n, K), which decide between equals.

    Returns:
        (groups,) index of each group's first member, and (groups,) its class; groups in order of appearance.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    voted = []
    for rows in members.values():
        votes = torch.bincount(predicted[rows], minlength=probabilities.shape[1])
        sums = probabilities[rows].sum(0)
        voted.append(torch.where(votes == votes.max(), sums, -torch.inf).argmax())
    return torch.tensor([rows[0] for rows in members.values()]), torch.stack(voted)

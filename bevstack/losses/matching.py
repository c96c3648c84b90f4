"""One-to-one matching of queries to targets at least total cost: boxes, masks, anything that states a cost."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from bevstack.losses.functional import l1_cost, sigmoid_focal_cost
from bevstack.losses.masks import mask_dice_cost, mask_focal_cost, softmax_class_cost
from bevstack.registry import TASK_UTILS


class MatchCost(Protocol):
    """A term of the matching cost: ``cost(predictions, targets) -> (..., Q, G)`` for one sample."""

    def __call__(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """Read the tensors this term needs by name; leading dimensions (decoder layers) pass through."""


@TASK_UTILS.register_module()
class FocalClassCost:
    """Focal classification cost of ``predictions["logits"]`` (..., Q, K) and ``targets["labels"]`` (G,).

    Args:
        weight: of this cost in the sum of all.
        alpha, gamma: of the focal loss (Lin et al. 2017, eq. 5).
    """

    def __init__(self, weight: float = 2.0, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """(..., Q, G) weighted cost."""
        return self.weight * sigmoid_focal_cost(predictions["logits"], targets["labels"], self.alpha, self.gamma)


@TASK_UTILS.register_module()
class BoxL1Cost:
    """L1 cost of the first ``dims`` values of ``predictions["boxes"]`` (..., Q, D) and ``targets["boxes"]`` (G, D).

    Velocities come last in the box code and may be unknown; ``dims = 8`` leaves them out, as the reference does.

    Args:
        weight: of this cost in the sum of all.
        dims: how many values of the box code count.
    """

    def __init__(self, weight: float = 0.25, dims: int = 8) -> None:
        self.weight, self.dims = weight, dims

    def __call__(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """(..., Q, G) weighted cost."""
        return self.weight * l1_cost(predictions["boxes"][..., : self.dims], targets["boxes"][..., : self.dims])


@TASK_UTILS.register_module()
class SoftmaxClassCost:
    """Cost of ``predictions["logits"]`` (..., Q, K + 1), "no object" last, and ``targets["labels"]`` (G,).

    Args:
        weight: of this cost in the sum of all.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """(..., Q, G) weighted cost."""
        return self.weight * softmax_class_cost(predictions["logits"], targets["labels"])


@TASK_UTILS.register_module()
class MaskFocalCost:
    """Focal cost of the logits ``predictions["masks"]`` (..., Q, P) and ``targets["masks"]`` (G, P) of P cells.

    ``targets["weights"]`` (P,): how many cells each of the P stands for.

    Args:
        weight: of this cost in the sum of all.
        alpha, gamma: of the focal loss (Lin et al. 2017, eq. 5).
    """

    def __init__(self, weight: float = 20.0, alpha: float = 0.25, gamma: float = 2.0) -> None:
        self.weight, self.alpha, self.gamma = weight, alpha, gamma

    def __call__(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """(..., Q, G) weighted cost."""
        masks = predictions["masks"], targets["masks"], targets["weights"]
        return self.weight * mask_focal_cost(*masks, self.alpha, self.gamma)


@TASK_UTILS.register_module()
class MaskDiceCost:
    """Dice cost of the logits ``predictions["masks"]`` (..., Q, P) and ``targets["masks"]`` (G, P) of P cells.

    ``targets["weights"]`` (P,): how many cells each of the P stands for.

    Args:
        weight: of this cost in the sum of all.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """(..., Q, G) weighted cost."""
        return self.weight * mask_dice_cost(predictions["masks"], targets["masks"], targets["weights"])


class HungarianMatcher:
    """Optimal one-to-one matching under the sum of some costs (DETR, Carion et al. 2020, eq. 1).

    Args:
        costs: the terms, built or as configs of the task-util registry.
    """

    def __init__(self, costs: Sequence[MatchCost | dict]) -> None:
        if not costs:
            raise ValueError("a matcher needs at least one cost")
        self.costs = [TASK_UTILS.build(cost) if isinstance(cost, dict) else cost for cost in costs]

    @torch.no_grad()
    def __call__(self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Match every sample's queries to its own targets; the leading dimension (decoder layers) is solved at once.

        All costs of the batch travel to the host in one copy, and the result back in one.

        Args:
            predictions: B mappings of named tensors (D, Q, ...): D independent problems (decoder layers) a sample.
            targets: B mappings of named tensors (G_b, ...); G_b may be 0 and may exceed Q.

        Returns:
            (B, D, Q) integer: ``matched[b, d, q]`` is the index of the target of sample b that query q of problem d is
            matched to, in [0, G_b), or -1. Each target appears at most once in a row; min(Q, G_b) queries of each row
            are matched.
        """
        matrices = []
        for prediction, target in zip(predictions, targets, strict=True):
            matrices.append(reduce(operator.add, (cost(prediction, target) for cost in self.costs)).float())
        flat = torch.cat([matrix.flatten() for matrix in matrices]).cpu().numpy()
        # A diverged model has NaN costs. They lose against every finite one here; its loss is still NaN and says so.
        flat = np.where(np.isfinite(flat), flat, np.float32(1e12))
        problems, queries = matrices[0].shape[:2]
        matched = np.full((len(matrices), problems, queries), -1, dtype=np.int64)
        start = 0
        for sample, matrix in enumerate(matrices):
            if matrix.shape[:2] != (problems, queries):
                raise ValueError(f"sample {sample}: costs {tuple(matrix.shape)}, expected {problems} x {queries} x G")
            block = flat[start : start + matrix.numel()].reshape(matrix.shape)
            start += matrix.numel()
            for problem in range(problems):
                rows, columns = linear_sum_assignment(block[problem])
                matched[sample, problem, rows] = columns
        return torch.from_numpy(matched).to(matrices[0].device)

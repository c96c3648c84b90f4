"""Classification losses and matching costs of mask classification (MaskFormer, Cheng et al. 2021); in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bevstack.geometry.transforms import full_precision
from bevstack.losses.dense import binary_focal_loss


def no_object_cross_entropy(logits: Tensor, labels: Tensor, no_object_weight: float = 0.1) -> Tensor:
    """Cross-entropy over K classes and "no object", whose share is weighted down (DETR, Carion et al. 2020, 3.1).

    Args:
        logits: (..., Q, K + 1), "no object" last.
        labels: (..., Q) int64, -1 for no object.
        no_object_weight: of a query without an object; any other weighs 1.

    Returns:
        scalar, the weighted mean.
    """
    logits = logits.float().flatten(0, -2)
    labels = torch.where(labels < 0, logits.shape[-1] - 1, labels).flatten()
    weights = logits.new_ones(logits.shape[-1])
    weights[-1] = no_object_weight
    return F.cross_entropy(logits, labels, weights)


def softmax_class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """Minus the probability of each target's class (MaskFormer, section 3.2).

    Args:
        logits: (..., Q, K + 1), "no object" last.
        labels: (G,) int64.

    Returns:
        (..., Q, G).
    """
    return -logits.float().softmax(-1)[..., labels]


def mask_focal_loss(logits: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Focal loss of masks, mean over the cells.

    Args:
        logits, masks: (M, P) of P cells, true ones 0 or 1.
        weights: (P,) how many cells of the whole map each of the P stands for.

    Returns:
        (M,).
    """
    with full_precision(logits):
        return binary_focal_loss(logits, masks) @ weights / weights.sum()


def mask_focal_cost(logits: Tensor, masks: Tensor, weights: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """:func:`mask_focal_loss` of each predicted mask against each true one.

    Args:
        logits: (..., Q, P) of P cells.
        masks: (G, P), 0 or 1.
        weights: (P,).
        alpha, gamma: see :func:`bevstack.losses.dense.binary_focal_loss`; alpha is not negative.

    Returns:
        (..., Q, G).
    """
    logits = logits.float()
    probability, surprise = logits.sigmoid(), F.softplus(logits)  # softplus(x) = -log(1 - p), less x: -log(p)
    outside = (1 - alpha) * surprise * probability.pow(gamma)
    inside = alpha * (surprise - logits) * (1 - probability).pow(gamma)
    with full_precision(logits):
        total = (outside @ weights).unsqueeze(-1)
        return ((inside - outside) @ (masks.float() * weights).T + total) / weights.sum()


def mask_dice_cost(logits: Tensor, masks: Tensor, weights: Tensor, smooth: float = 1.0) -> Tensor:
    """Dice loss (:func:`bevstack.losses.dense.dice_loss`) of each predicted mask against each true one.

    Args:
        logits, masks, weights: see :func:`mask_focal_cost`.
        smooth: keeps empty masks finite.

    Returns:
        (..., Q, G).
    """
    probability, weighted = logits.float().sigmoid(), masks.float() * weights
    with full_precision(logits):
        total = (probability.square() @ weights).unsqueeze(-1) + weighted.sum(-1)
        return 1 - (2 * (probability @ weighted.T) + smooth) / (total + smooth)

"""Losses and matching costs as functions on tensors, unreduced; they never hide a NaN."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce
from torch import Tensor

from bevstack.geometry.heading_bins import encode_heading
from bevstack.losses.dense import binary_focal_loss


def sigmoid_focal_loss(logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """:func:`bevstack.losses.dense.binary_focal_loss` of the K questions whether an object is of a class.

    Args:
        logits: (..., K).
        labels: (...) integer class, -1 for background (no class at all).
        alpha: weight of the positive class.
        gamma: focusing exponent.

    Returns:
        (..., K), not reduced.
    """
    classes = torch.arange(logits.shape[-1], device=logits.device)
    return binary_focal_loss(logits, labels.unsqueeze(-1) == classes, alpha, gamma)


def sigmoid_focal_cost(
    logits: Tensor, labels: Tensor, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-12
) -> Tensor:
    """What it costs to give each query each target's class: focal loss as a positive minus as a negative.

    Source: Deformable DETR (Zhu et al. 2021); exact form in docs/reference.md 4.8, Focal cost.

    Args:
        logits: (..., Q, K).
        labels: (G,) integer classes.
        alpha: weight of the positive class.
        gamma: focusing exponent.
        eps: added inside the logarithms.

    Returns:
        (..., Q, G).
    """
    probability = logits.float().sigmoid()
    positive = -alpha * (1 - probability).pow(gamma) * (probability + eps).log()
    negative = -(1 - alpha) * probability.pow(gamma) * (1 - probability + eps).log()
    return (positive - negative)[..., labels]


def l1_cost(predictions: Tensor, targets: Tensor) -> Tensor:
    """Sum of absolute differences of every prediction (..., Q, D) to every target (G, D): (..., Q, G), float32."""
    return torch.cdist(predictions.float(), targets.float().expand(*predictions.shape[:-2], -1, -1), p=1)


def masked_l1_loss(predictions: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Absolute difference where ``mask`` holds and exactly zero, with zero gradient, where it does not.

    Args:
        predictions: any shape; a NaN here stays a NaN in the loss, masked or not.
        targets: the same shape; may hold anything, NaN too, where masked out.
        mask: the same shape, bool.

    Returns:
        The same shape, float32, not reduced.
    """
    predictions = predictions.float()
    targets = torch.where(mask, targets.to(predictions.dtype), predictions.detach())
    return (predictions - targets).abs()


def heading_bin_loss(logits: Tensor, residuals: Tensor, yaw: Tensor) -> Tensor:
    """What a choice of bins and the angles from them miss of a heading (:mod:`bevstack.geometry.heading_bins`).

    Kullback-Leibler divergence of the bins' probabilities from the heading's shares, plus the absolute error of each
    bin's angle, by its share: zero at the truth alone, without a jump where a heading leaves a bin.

    Args:
        logits, residuals: (..., n) of n bins.
        yaw: (...) true headings in radians; NaN where not known: the loss is zero there, and so is its gradient.

    Returns:
        (...) float32, not reduced.
    """
    known = yaw.isfinite()
    weights, targets = encode_heading(torch.where(known, yaw, 0.0).float(), logits.shape[-1])
    divergence = torch.xlogy(weights, weights) - weights * logits.float().log_softmax(-1)
    angle = weights * (residuals.float() - targets).abs()
    return torch.where(known, (divergence + angle).sum(-1), 0.0)


def mean_across_ranks(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """A number averaged over all processes of a distributed run, as a float32 scalar; itself where there is one."""
    mean = torch.as_tensor(value, dtype=torch.float32, device=device).clone()
    all_reduce(mean, op="mean")
    return mean

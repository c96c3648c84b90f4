"""Losses of dense predictions: binary masks and centre heatmaps; unreduced or per mask, in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bevstack.geometry.transforms import full_precision


def binary_focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5) of independent yes / no questions.

    Args:
        logits, target: (...), any shape, both the same; target in [0, 1].
        alpha: weight of the positive side, negative: both sides weigh one; gamma: focusing exponent.

    Returns:
        (...) float32, not reduced.
    """
    logits, target = logits.float(), target.float()
    probability = logits.sigmoid()
    miss = probability * (1 - target) + (1 - probability) * target
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * miss.pow(gamma)
    return loss if alpha < 0 else loss * (alpha * target + (1 - alpha) * (1 - target))


def dice_loss(logits: Tensor, target: Tensor, weights: Tensor | None = None, smooth: float = 1.0) -> Tensor:
    """One minus the Dice coefficient of each mask (Milletari et al. 2016, squared form).

    Args:
        logits, target: (..., D), one mask per row; target in [0, 1].
        weights: (D,) how many cells each of the D stands for; None for one.
        smooth: keeps empty masks finite.

    Returns:
        (...), not reduced.
    """
    probability, target = logits.float().sigmoid(), target.float()

    def total(values: Tensor) -> Tensor:
        return values.sum(-1) if weights is None else values @ weights

    with full_precision(logits):
        overlap = total(probability * target)
        extent = total(probability.square()) + total(target.square())
        return 1 - (2 * overlap + smooth) / (extent + smooth)


def heatmap_focal_loss(logits: Tensor, heatmap: Tensor, alpha: float = 2.0, beta: float = 4.0) -> Tensor:
    """Penalty-reduced focal loss of centre heatmaps (CornerNet, Law and Deng 2018, eq. 1), from logits.

    Args:
        logits, heatmap: (..., Y, X), both the same shape; the heatmap is 1 at centres and falls off around them.
        alpha, beta: exponents of the prediction and of the distance to a centre.

    Returns:
        (..., Y, X) float32, not reduced; divide the sum by the number of centres.
    """
    logits, heatmap = logits.float(), heatmap.float()
    probability = logits.sigmoid()
    positive = F.logsigmoid(logits) * (1 - probability).pow(alpha)
    negative = F.logsigmoid(-logits) * probability.pow(alpha) * (1 - heatmap).pow(beta)
    center = heatmap.eq(1).to(logits.dtype)
    return -(positive * center + negative * (1 - center))

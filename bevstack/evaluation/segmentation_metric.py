"""IoU of BEV rasters, at a fixed threshold and at the best one (docs/reference.md 1, Thresholds)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bevstack.errors import InputError
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.registry import METRICS
from bevstack.structures import BEVRaster

THRESHOLDS = (0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65)
FIXED_THRESHOLD = 0.50


@METRICS.register_module()
class BEVSegmentationMetric(GatheredMetric):
    """Intersection over union of one named raster, per class, over all cells of all samples.

    Reads ``gt_rasters[name]`` and ``pred_rasters[name]`` of each sample. ``iou/<class>`` counts a cell as predicted
    when its probability is at least 0.5; ``iou_best/<class>`` takes the threshold that scores best on this very data
    (``best_threshold/<class>``), as BEVFusion reports it: an optimistic number, comparable only with its like.
    ``mIoU/<name>`` and ``mIoU_best/<name>`` are means over the classes; a class without any true cell is NaN and left
    out of them. Counts are integers, so order and number of ranks cannot matter.

    Args:
        name: name of the raster, as ``map`` or ``vehicle``.
        classes: layers to score; None scores every layer of the ground truth.
        thresholds: candidates for the best threshold; 0.5 is always among them.

    Raises:
        InputError: a raster or layer is missing, grids differ, a probability is not finite, a sample comes twice.
    """

    def __init__(
        self, name: str, classes: Sequence[str] | None = None, thresholds: Sequence[float] = THRESHOLDS
    ) -> None:
        super().__init__()
        self.name = name
        self.classes = None if classes is None else tuple(classes)
        self.thresholds = tuple(sorted({*map(float, thresholds), FIXED_THRESHOLD}))

    def _raster(self, sample: dict[str, Any], field: str) -> BEVRaster:
        rasters = sample.get(field) or {}
        if self.name not in rasters:
            reason = f"sample {sample.get('token')} has no raster '{self.name}'; it has {sorted(rasters) or 'none'}"
            raise InputError("BEVSegmentationMetric", f"{field}/{self.name}", reason)
        return rasters[self.name]

    def _layers(self, raster: BEVRaster, field: str) -> Tensor:
        absent = [name for name in self.classes or () if name not in raster.classes]
        if absent:
            reason = f"has no layer '{absent[0]}'; it has {', '.join(raster.classes)}"
            raise InputError("BEVSegmentationMetric", f"{field}/{self.name}", reason)
        return raster.layers[[raster.classes.index(name) for name in self.classes or ()]]

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Count the cells of one batch's samples by class and threshold."""
        for sample in map(as_dict, data_samples):
            truth, predicted = self._raster(sample, "gt_rasters"), self._raster(sample, "pred_rasters")
            if not truth.grid.same_as(predicted.grid):
                reason = f"the prediction lies on {predicted.grid}, the ground truth on {truth.grid}"
                raise InputError("BEVSegmentationMetric", f"grid/{self.name}", reason)
            self.classes = self.classes or tuple(truth.classes)
            probabilities = self._layers(predicted, "pred_rasters").float()
            if not torch.isfinite(probabilities).all():
                reason = f"sample {sample.get('token')} has a probability that is not finite"
                raise InputError("BEVSegmentationMetric", f"pred_rasters/{self.name}", reason)
            counts = count_cells(probabilities, self._layers(truth, "gt_rasters"), self.thresholds)
            self.results.append((sample["token"], self.classes, counts.cpu()))

    def compute_metrics(self, results: list[tuple[str, tuple[str, ...], Tensor]]) -> dict[str, float]:
        """IoU of each class at 0.5 and at its best threshold, and their means, from all samples' counts.

        Args:
            results: of each sample its token, the names of the K classes, and counts (K, thresholds, 3) int64
                (:func:`count_cells`).

        Returns:
            Numbers in [0, 1] by name, NaN where no cell is of a class: ``mIoU/<name>``, ``mIoU_best/<name>``, and of
            each class ``iou/<class>``, ``iou_best/<class>`` and ``best_threshold/<class>``.

        Raises:
            InputError: no sample was scored, or one twice.
        """
        if not results:
            raise InputError("BEVSegmentationMetric", self.name, "no sample was scored")
        self.require_distinct(token for token, _, _ in results)
        classes = results[0][1]
        inside, predicted, true = torch.stack([counts for _, _, counts in results]).sum(0).unbind(-1)  # (K, thresholds)
        iou = inside / (predicted + true - inside).double()
        iou[true == 0] = torch.nan
        fixed = iou[:, self.thresholds.index(FIXED_THRESHOLD)]
        best, place = torch.where(iou.isnan(), -1.0, iou).max(dim=1)
        best = torch.where(fixed.isnan(), fixed, best)
        metrics = {f"mIoU/{self.name}": fixed.nanmean().item(), f"mIoU_best/{self.name}": best.nanmean().item()}
        for row, layer in enumerate(classes):
            metrics[f"iou/{layer}"] = fixed[row].item()
            metrics[f"iou_best/{layer}"] = best[row].item()
            metrics[f"best_threshold/{layer}"] = float("nan") if best[row].isnan() else self.thresholds[place[row]]
        return metrics


def count_cells(probabilities: Tensor, truth: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Cells by class and threshold, in one pass.

    Args:
        probabilities: (K, Y, X) float; truth: (K, Y, X), non-zero where the class is; thresholds: ascending.

    Returns:
        (K, thresholds, 3) int64: cells predicted and true, predicted, true.
    """
    edges = torch.tensor(thresholds, dtype=probabilities.dtype, device=probabilities.device)
    above = torch.bucketize(probabilities.contiguous(), edges, right=True)  # how many thresholds the cell reaches
    num_bins = len(thresholds) + 1
    true = truth.to(probabilities.device) != 0
    counts = []
    for layer_above, layer_true in zip(above.flatten(1), true.flatten(1), strict=True):
        histogram = torch.bincount(layer_above + num_bins * layer_true, minlength=2 * num_bins).view(2, num_bins)
        reached = histogram.flip(1).cumsum(1).flip(1)[:, 1:]  # (not true, true) x thresholds
        counts.append(torch.stack([reached[1], reached.sum(0), histogram[1].sum().expand_as(reached[1])], dim=-1))
    return torch.stack(counts)

"""IoU of BEV rasters by closed form, and what the metric refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevstack.errors import InputError
from bevstack.evaluation import BEVSegmentationMetric
from bevstack.evaluation.segmentation_metric import count_cells
from bevstack.geometry import BEVGrid
from bevstack.registry import METRICS
from bevstack.structures import BEVDataSample, BEVRaster

GRID = BEVGrid((10, 20), (-10.0, 10.0), (-5.0, 5.0))
CLASSES = ("drivable_area", "divider")


def sample_of(token, truth, predicted, classes=CLASSES, grid=GRID, name="map"):
    sample = BEVDataSample(metainfo={"token": token})
    sample.gt_rasters = {name: BEVRaster(truth, classes, GRID)}
    sample.pred_rasters = {name: BEVRaster(predicted, classes, grid)}
    return sample


def layers(**columns):
    """(2, 10, 20) zeros with the named columns of each layer set to a value."""
    answer = torch.zeros(2, 10, 20)
    for layer, (first, last, value) in columns.items():
        answer[int(layer[1:])][:, first:last] = value
    return answer


def evaluate(samples, **options):
    metric = BEVSegmentationMetric(**{"name": "map", **options})
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def test_overlap_of_two_rectangles():
    # Expected: columns 0-7 true, 4-11 predicted: 4 shared of 12, IoU 1/3. Layer 1 is perfect.
    truth = layers(l0=(0, 8, 1), l1=(2, 5, 1)).to(torch.uint8)
    metrics = evaluate([sample_of("a", truth, layers(l0=(4, 12, 0.9), l1=(2, 5, 0.9)))])
    assert metrics["iou/drivable_area"] == pytest.approx(1 / 3)
    assert metrics["iou/divider"] == 1.0
    assert metrics["mIoU/map"] == pytest.approx(2 / 3)


def test_best_threshold_is_chosen_per_class():
    # Expected: the true 8 columns have probability 0.42, four false ones 0.37: at 0.35 the IoU is 8 / 12, at 0.4 it
    # is 1, at 0.45 and above nothing is predicted. A probability equal to the threshold counts (layer 1 at 0.5).
    predicted = layers(l0=(0, 8, 0.42), l1=(2, 5, 0.5))
    predicted[0][:, 8:12] = 0.37
    truth = layers(l0=(0, 8, 1), l1=(2, 5, 1)).bool()
    metrics = evaluate([sample_of("a", truth, predicted)])
    assert metrics["iou/drivable_area"] == 0.0
    assert metrics["iou_best/drivable_area"] == 1.0
    assert metrics["best_threshold/drivable_area"] == pytest.approx(0.40)
    assert metrics["iou/divider"] == 1.0
    assert metrics["mIoU_best/map"] == 1.0


def test_class_without_true_cells_is_left_out():
    # Expected: NaN for the class, the other class's IoU as the mean, even where the absent class is predicted.
    truth, predicted = layers(l0=(0, 8, 1)).bool(), layers(l0=(0, 8, 1.0), l1=(0, 3, 0.9))
    metrics = evaluate([sample_of("a", truth, predicted)])
    assert all(math.isnan(metrics[f"{key}/divider"]) for key in ("iou", "iou_best", "best_threshold"))
    assert metrics["mIoU/map"] == metrics["mIoU_best/map"] == 1.0


def test_cells_of_all_samples_count_together():
    # Expected: 4 of 4 columns right in one sample, 0 of 12 in the other: 4 / 16, not the mean of the samples' IoUs.
    truth = [layers(l0=(0, 4, 1)).bool(), layers(l0=(0, 12, 1)).bool()]
    samples = [sample_of("a", truth[0], layers(l0=(0, 4, 1.0))), sample_of("b", truth[1], layers())]
    assert evaluate(samples)["iou/drivable_area"] == pytest.approx(4 / 16)
    np.testing.assert_equal(evaluate(samples[::-1]), evaluate(samples))


def test_counts_equal_counting_cell_by_cell():
    # Expected: the definition, threshold by threshold, on random probabilities.
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(3, 7, 5, generator=generator).mul(20).round().div(20)  # many fall on a threshold
    truth = torch.rand(3, 7, 5, generator=generator) < 0.4
    thresholds = (0.35, 0.5, 0.65)
    counts = count_cells(probabilities, truth, thresholds)
    assert counts.shape == (3, 3, 3) and counts.dtype == torch.int64
    for column, threshold in enumerate(thresholds):
        above = probabilities >= torch.tensor(threshold)
        expected = torch.stack([(above & truth).sum((1, 2)), above.sum((1, 2)), truth.sum((1, 2))], dim=-1)
        assert torch.equal(counts[:, column], expected)


def test_chosen_classes_are_found_by_name():
    # Expected: the prediction's layers may come in another order than the truth's.
    sample = sample_of("a", layers(l0=(0, 8, 1)).bool(), layers())
    swapped = BEVRaster(layers(l1=(0, 8, 1.0)), CLASSES[::-1], GRID)
    sample.pred_rasters = {"map": swapped}
    metrics = evaluate([sample], classes=("drivable_area",))
    assert metrics["iou/drivable_area"] == 1.0 and "iou/divider" not in metrics


def test_grids_must_match():
    other = BEVGrid((10, 20), (-10.0, 10.0), (-5.0, 5.5))
    with pytest.raises(InputError, match="the prediction lies on .* the ground truth on"):
        evaluate([sample_of("a", layers().bool(), layers(), grid=other)])


def test_missing_raster_and_layer_are_refused():
    sample = sample_of("a", layers().bool(), layers())
    with pytest.raises(InputError, match="gt_rasters/vehicle: sample a has no raster 'vehicle'; it has \\['map'\\]"):
        evaluate([sample], name="vehicle")
    with pytest.raises(InputError, match="has no layer 'walkway'; it has drivable_area, divider"):
        evaluate([sample], classes=("walkway",))


def test_not_finite_and_repeated_samples_are_refused():
    sample = sample_of("a", layers(l0=(0, 1, 1)).bool(), layers(l0=(0, 1, math.nan)))
    with pytest.raises(InputError, match="not finite"):
        evaluate([sample])
    sample = sample_of("a", layers(l0=(0, 1, 1)).bool(), layers())
    with pytest.raises(InputError, match="a: sample is there more than once"):
        evaluate([sample, sample])
    with pytest.raises(InputError, match="no sample was scored"):
        evaluate([])


def test_registered():
    assert METRICS.get("BEVSegmentationMetric") is BEVSegmentationMetric

"""Panoptic quality, instance AP and mIoU by hand, and against torchmetrics."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.evaluation import PanopticMetric
from bevstack.evaluation.panoptic_metric import count_class_cells, count_matches
from bevstack.geometry import BEVGrid
from bevstack.registry import METRICS
from bevstack.structures import BEVDataSample, PanopticMap

GRID = BEVGrid((10, 20), (-10.0, 10.0), (-5.0, 5.0))
THINGS, STUFF = ("car", "pedestrian"), ("divider", "drivable_area")
CAR, PEDESTRIAN, DIVIDER, ROAD = range(4)


def map_of(*columns, grid=GRID, things=THINGS):
    """Segments (class, first column, last column + 1), each over all ten rows."""
    segments = torch.full(GRID.shape, -1)
    for number, (_, first, last) in enumerate(columns):
        segments[:, first:last] = number
    labels = torch.tensor([label for label, _, _ in columns], dtype=torch.int64)
    return PanopticMap(segments, labels, torch.arange(len(labels)), things, STUFF, grid)


def masks_of(*columns):
    """Instances (class, score, first column, last column + 1)."""
    masks = torch.zeros(len(columns), *GRID.shape, dtype=torch.bool)
    for mask, (_, _, first, last) in zip(masks, columns, strict=True):
        mask[:, first:last] = True
    scores = torch.tensor([score for _, score, _, _ in columns])
    return InstanceData(masks=masks, scores=scores, labels=torch.tensor([c[0] for c in columns], dtype=torch.int64))


def sample_of(token, truth, predicted, masks=None):
    sample = BEVDataSample(metainfo={"token": token})
    sample.gt_panoptic, sample.pred_panoptic = truth, predicted
    if masks is not None:
        sample.pred_masks = masks
    return sample


def evaluate(*samples):
    metric = PanopticMetric()
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def approx(value):
    return pytest.approx(value, abs=1e-9, nan_ok=True)


def test_a_perfect_answer():
    # Expected: 1 for all there is; NaN for the class that is not there, which no mean counts.
    truth = map_of((CAR, 0, 3), (CAR, 4, 6), (ROAD, 6, 15))
    metrics = evaluate(sample_of("a", truth, truth, masks_of((CAR, 0.9, 0, 3), (CAR, 0.8, 4, 6))))
    for key in ("PQ", "SQ", "RQ", "PQ_things", "PQ_stuff", "PQ/car", "PQ/drivable_area", "mIoU/panoptic"):
        assert metrics[key] == approx(1.0), key
    assert metrics["mask_AP"] == metrics["mask_AP50"] == metrics["mask_AP/car"] == approx(1.0)
    for key in ("PQ/pedestrian", "PQ/divider", "mask_AP/pedestrian", "iou_panoptic/divider"):
        assert math.isnan(metrics[key]), key


def test_quality_by_hand():
    # Cars: columns 0-3 true, 0-2 predicted: IoU 3/4, a match; 5-6 true, 6-7 predicted: IoU 1/3, none: one false
    # positive, one false negative. PQ = 3/4 / (1 + 1/2 + 1/2) = 3/8, SQ = 3/4, RQ = 1/2.
    # Road: 8-15 true, 9-18 predicted: 7 of 11, a match. PQ = SQ = 7/11, RQ = 1: that columns 16-18 belong to nobody
    # does not make them "void". Pedestrian: predicted alone, PQ 0. Divider: nowhere.
    truth = map_of((CAR, 0, 4), (CAR, 5, 7), (ROAD, 8, 16))
    predicted = map_of((CAR, 0, 3), (CAR, 6, 8), (PEDESTRIAN, 8, 9), (ROAD, 9, 19))
    metrics = evaluate(sample_of("a", truth, predicted))
    expected = {
        "PQ/car": 3 / 8,
        "SQ/car": 3 / 4,
        "RQ/car": 1 / 2,
        "PQ/drivable_area": 7 / 11,
        "SQ/drivable_area": 7 / 11,
        "RQ/drivable_area": 1.0,
        "PQ/pedestrian": 0.0,
        "SQ/pedestrian": 0.0,
        "RQ/pedestrian": 0.0,
        "PQ/divider": math.nan,
        "PQ_things": 3 / 16,
        "PQ_stuff": 7 / 11,
        "PQ": (3 / 8 + 7 / 11 + 0) / 3,
        "SQ": (3 / 4 + 7 / 11 + 0) / 3,
        "RQ": (1 / 2 + 1 + 0) / 3,
        # cells of cars: 0-2 and 6 shared (4), 5 predicted, 6 true: 4 / 7
        "iou_panoptic/car": 4 / 7,
        "iou_panoptic/drivable_area": 7 / 11,
        "iou_panoptic/pedestrian": math.nan,
        "mIoU/panoptic": (4 / 7 + 7 / 11) / 2,
    }
    for key, value in expected.items():
        assert metrics[key] == approx(value), key
    assert not any(key.startswith("mask_AP") for key in metrics)  # nothing predicted masks


def test_a_match_needs_more_than_half():
    # Expected: IoU of exactly 1/2 is no match (Kirillov et al. 2019, 4.1): 4 columns true, the first 2 predicted.
    metrics = evaluate(sample_of("a", map_of((CAR, 0, 4)), map_of((CAR, 0, 2))))
    assert metrics["PQ/car"] == 0 and metrics["iou_panoptic/car"] == approx(0.5)


def test_the_same_cells_of_another_class_do_not_match():
    metrics = evaluate(sample_of("a", map_of((CAR, 0, 4)), map_of((PEDESTRIAN, 0, 4))))
    assert metrics["PQ/car"] == metrics["PQ/pedestrian"] == metrics["PQ"] == 0.0


def test_counts_of_all_samples_come_together_in_any_order():
    # Expected: one match of IoU 1 in one sample, two misses in the other: PQ = 1 / (1 + 2 / 2).
    first = sample_of("a", map_of((CAR, 0, 4)), map_of((CAR, 0, 4)))
    second = sample_of("b", map_of((CAR, 0, 4), (CAR, 5, 6)), map_of())
    metrics = evaluate(first, second)
    assert metrics["PQ/car"] == approx(1 / 2) and metrics["SQ/car"] == 1.0
    assert json.dumps(evaluate(second, first)) == json.dumps(metrics)


def test_instance_ap_by_hand():
    # Three true cars. Best first: a hit with IoU 1 (score .9), a miss (.8), a hit with IoU 3/4 (.7); the third car is
    # not found. At IoU 0.5: precision 1 up to recall 1/3, then 2/3 up to 2/3, then 0. COCO samples 101 recalls 0, 0.01
    # ... 1: 34 of them (0 ... 0.33) at precision 1, 33 (0.34 ... 0.66) at 2/3, the rest 0: (34 + 22) / 101.
    # The thresholds 0.5 ... 0.75 (six) see both hits, 0.8 ... 0.95 (four) only the first: 34 / 101.
    truth = map_of((CAR, 0, 4), (CAR, 5, 9), (CAR, 10, 12))
    masks = masks_of((CAR, 0.9, 0, 4), (CAR, 0.8, 14, 17), (CAR, 0.7, 5, 8), (PEDESTRIAN, 0.9, 0, 4))
    metrics = evaluate(sample_of("a", truth, map_of(), masks))
    assert metrics["mask_AP50"] == metrics["mask_AP50/car"] == approx(56 / 101)
    assert metrics["mask_AP"] == approx((6 * 56 + 4 * 34) / 10 / 101)
    assert math.isnan(metrics["mask_AP/pedestrian"])  # a class without truth is left out


def test_scores_rank_masks_across_samples():
    # Expected: at IoU 0.5 the miss of sample b (.95) comes before the hit of sample a (.9): precision 1/2 up to recall
    # 1/2, then 0, for half of the cars is never found: 51 of 101 recalls at 1/2.
    first = sample_of("a", map_of((CAR, 0, 4)), map_of(), masks_of((CAR, 0.9, 0, 4)))
    second = sample_of("b", map_of((CAR, 5, 9)), map_of(), masks_of((CAR, 0.95, 0, 4)))
    assert evaluate(first, second)["mask_AP50"] == approx(51 / 2 / 101)


def test_nothing_at_all():
    # Expected: no class is there, so that every number is NaN and none an error; also with no mask predicted.
    metrics = evaluate(sample_of("a", map_of(), map_of(), masks_of()))
    assert metrics and all(math.isnan(value) for value in metrics.values())
    assert evaluate(sample_of("a", map_of((CAR, 0, 4)), map_of(), masks_of()))["mask_AP"] == 0.0


def random_map(seed):
    """Blocks of 2 x 2 cells, each of one of nine segments or of none."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(-1, 9, (5, 10), generator=generator)
    blocks = torch.where(torch.rand(5, 10, generator=generator) < 0.7, torch.arange(10) - 1, blocks)
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 3])
    there, segments = blocks.unique(return_inverse=True)
    there, segments = (there[1:], segments - 1) if there[0] < 0 else (there, segments)
    segments = segments.repeat_interleave(2, 0).repeat_interleave(2, 1)
    return PanopticMap(segments, labels[there], there, THINGS, STUFF, GRID)


def test_quality_equals_torchmetrics():
    # Expected: torchmetrics' PanopticQuality, told that "nothing" is a stuff class of its own (in it, an unknown class
    # would be void).
    from torchmetrics.detection import PanopticQuality

    def colored(panoptic):
        return torch.stack([panoptic.cell_labels() % 5, panoptic.segments + 1], dim=-1).unsqueeze(0)

    reference = PanopticQuality(things={0, 1}, stuffs={2, 3, 4})
    samples = []
    for seed in range(6):
        truth, predicted = random_map(seed), random_map(seed + 100)
        reference.update(colored(predicted), colored(truth))
        samples.append(sample_of(str(seed), truth, predicted))
    counts = sum(count_matches(sample.pred_panoptic, sample.gt_panoptic) for sample in samples)
    names = ("iou_sum", "true_positives", "false_positives", "false_negatives")
    expected = torch.stack([getattr(reference, name).double() for name in names], dim=-1)
    order = [reference.cat_id_to_continuous_id[label] for label in range(4)]
    torch.testing.assert_close(counts, expected[order])
    assert (counts.sum(0) > 0).all()  # of each kind there was some


def test_cells_equal_counting_class_by_class():
    truth, predicted = random_map(0), random_map(100)
    for label, counts in enumerate(count_class_cells(predicted, truth).tolist()):
        a, b = predicted.cell_labels() == label, truth.cell_labels() == label
        assert counts == [(a & b).sum(), a.sum(), b.sum()]


def test_what_does_not_fit_is_refused():
    truth = map_of((CAR, 0, 4))
    with pytest.raises(InputError, match="the prediction lies on .* the ground truth on"):
        evaluate(sample_of("a", truth, map_of(grid=BEVGrid((10, 20), (-10.0, 10.0), (-5.0, 5.5)))))
    with pytest.raises(InputError, match="things and stuff of the prediction are .*'bus'.* those of the ground truth"):
        evaluate(sample_of("a", truth, map_of(things=("car", "bus"))))
    with pytest.raises(InputError, match="gt_panoptic: sample a has none; put MakePanopticMap into the test pipeline"):
        evaluate(sample_of("a", None, truth))
    with pytest.raises(InputError, match="pred_panoptic: sample a has none; no head predicted it"):
        evaluate(sample_of("a", truth, None))
    with pytest.raises(InputError, match="a score that is not finite"):
        evaluate(sample_of("a", truth, truth, masks_of((CAR, math.nan, 0, 4))))
    with pytest.raises(InputError, match="a: sample is there more than once"):
        evaluate(sample_of("a", truth, truth), sample_of("a", truth, truth))
    with pytest.raises(InputError, match="no sample was scored"):
        evaluate()


def test_registered():
    assert METRICS.get("PanopticMetric") is PanopticMetric

"""OKS-AP and PCK of points in images by hand, what need not be found, augmentation, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevstack.errors import InputError
from bevstack.evaluation import ImageKeypointMetric
from bevstack.evaluation.keypoint_metric import SIGMAS
from bevstack.geometry.boxes3d import transform_boxes
from bevstack.geometry.keypoints import KEYPOINT_NAMES
from bevstack.models.heads import ImageKeypointHead
from bevstack.models.heads.image_keypoints import image_keypoint_targets
from bevstack.registry import METRICS
from tests.models.test_image_keypoints import AHEAD, BEHIND, PIXELS_FROM_CAMERA, box, perfect, rig_of
from tests.models.test_image_keypoints import sample_of as labelled

CLASSES = ("car", "barrier")
SIZE_AT_20M = 200 * math.sqrt(1.0 * math.sqrt(4.0 * 2.0)) / 20
"""Pixels: focal length 200, a box of 4 x 2 x 1 m."""


class Boxes:
    """Stands for LiDARInstance3DBoxes, of which the metric reads only the tensor."""

    def __init__(self, rows):
        self.tensor = torch.tensor(rows).reshape(-1, 9)


def seen(x, y):
    """Names and pixels of what the camera ahead sees of box(x, y): u = 160 + 200 x / y, v = 60 - 200 z / y."""
    ground = {"front_left": (-1, 2), "front_right": (1, 2), "rear_right": (1, -2), "rear_left": (-1, -2)}
    ground["front"] = (0, 2)
    places = {"centre": (x, y, -1.0)} | {name: (x + dx, y + dy, -1.5) for name, (dx, dy) in ground.items()}
    return {name: (160 + 200 * px / py, 60 - 200 * pz / py) for name, (px, py, pz) in places.items()}


def points_of(*found, scores=None):
    """Predictions from dicts of names and pixels, all of camera 0; a score each."""
    rows = [(KEYPOINT_NAMES.index(name), place, (scores or [0.9] * len(found))[n])
            for n, points in enumerate(found) for name, place in points.items()]  # fmt: skip
    return {
        "kinds": torch.tensor([kind for kind, _, _ in rows]).long(),
        "points_px": torch.tensor([place for _, place, _ in rows]).reshape(-1, 2),
        "scores": torch.tensor([score for _, _, score in rows]),
        "cameras": torch.zeros(len(rows)).long(),
    }


def sample_of(truth, predicted, token="t", labels=None, points=None):  # noqa: S107
    instances = {"bboxes_3d": Boxes(truth), "labels_3d": torch.tensor(labels or [0] * len(truth)).long()}
    if points is not None:
        instances["num_lidar_pts"] = torch.tensor(points)
    return {
        "token": token,
        "gt_instances_3d": instances,
        "pred_image_keypoints": predicted,
        "pixels_from_camera": PIXELS_FROM_CAMERA.expand(2, 3, 3).numpy(),
        "camera_from_bev": torch.stack([AHEAD, BEHIND]).numpy(),
        "image_size_px": np.array([[120, 320]] * 2),
    }


def evaluate(samples, **options):
    metric = ImageKeypointMetric(**{"classes": CLASSES, **options})
    metric.process(None, samples)
    return metric.evaluate(len(samples))


SUMMARY = ["image_keypoint_" + name for name in ("AP", "AP50", "AP75", "PCK@0.1", "PCK@0.2")]


def test_a_perfect_answer():
    metrics = evaluate([sample_of([box(2, 20), box(-3, 25)], points_of(seen(2, 20), seen(-3, 25)))])
    for key in SUMMARY:
        assert metrics[key] == pytest.approx(1.0), key
    for kind in KEYPOINT_NAMES:
        assert metrics[f"image_keypoint_gt/{kind}"] == 2 and metrics[f"image_keypoint_AP/{kind}"] == pytest.approx(1.0)


def test_what_the_head_is_taught_is_perfect():
    # Expected: raw outputs that say exactly what the head's targets ask, in both cameras, score 1.
    rig, rows = rig_of(), (box(2.0, 20.0), box(-3.0, -15.0, 0.3))
    target = image_keypoint_targets(0, labelled(*rows), rig)
    assert set(target.cameras.tolist()) == {0, 1}
    predicted = ImageKeypointHead(8).predict(perfect(target, rig), rig)[0]["pred_image_keypoints"]
    metrics = evaluate([sample_of(list(rows), predicted)])
    for key in SUMMARY:
        assert metrics[key] == pytest.approx(1.0), key


def test_one_of_two_is_found():
    # By COCO's definition: precision is 1 up to recall .5, which are 51 of the 101 recalls.
    metrics = evaluate([sample_of([box(2, 20), box(-3, 25)], points_of(seen(2, 20)))])
    assert metrics["image_keypoint_AP"] == metrics["image_keypoint_AP/front"] == pytest.approx(51 / 101)
    assert metrics["image_keypoint_PCK@0.1"] == metrics["image_keypoint_PCK@0.2/centre"] == 0.5


def test_a_point_that_is_off():
    # By hand: the centre is 0.15 s off: OKS = exp(-.0225 / (2 * .2^2)) = .755, right at 6 of the 10 thresholds, found
    # within 0.2 s but not within 0.1 s; the five others are right. The same for an image of twice the size.
    for zoom in (1, 2):
        points = seen(2, 20)
        points["centre"] = (points["centre"][0] + 0.15 * SIZE_AT_20M, points["centre"][1])
        sample = sample_of([box(2, 20)], points_of(points))
        sample["pred_image_keypoints"]["points_px"] = sample["pred_image_keypoints"]["points_px"] * zoom
        sample["pixels_from_camera"] = np.diag([zoom, zoom, 1]) @ sample["pixels_from_camera"]
        sample["image_size_px"] = sample["image_size_px"] * zoom
        metrics = evaluate([sample])
        assert metrics["image_keypoint_AP/centre"] == pytest.approx(0.6)
        assert metrics["image_keypoint_AP"] == pytest.approx(5.6 / 6)
        assert metrics["image_keypoint_AP75"] == pytest.approx(1.0)
        assert metrics["image_keypoint_PCK@0.1/centre"] == 0.0 and metrics["image_keypoint_PCK@0.2/centre"] == 1.0
        assert metrics["image_keypoint_PCK@0.1"] == pytest.approx(5 / 6)


def test_kinds_and_cameras_do_not_mix():
    # Expected: left and right changed, two of six kinds are wrong; all in the other camera's image, everything is.
    points = seen(2, 20)
    points["front_left"], points["front_right"] = points["front_right"], points["front_left"]
    metrics = evaluate([sample_of([box(2, 20)], points_of(points))])
    assert metrics["image_keypoint_PCK@0.2"] == metrics["image_keypoint_AP"] == pytest.approx(4 / 6)
    predicted = points_of(seen(2, 20))
    predicted["cameras"] += 1
    metrics = evaluate([sample_of([box(2, 20)], predicted)])
    assert all(metrics[key] == 0.0 for key in SUMMARY)


def test_false_points_cost_by_their_score():
    # By hand: before the right one, a false point halves the precision everywhere; after it, it costs nothing.
    for scores, expected in (((0.5, 0.9), 0.5), ((0.9, 0.5), 1.0)):
        metrics = evaluate([sample_of([box(2, 20)], points_of(seen(2, 20), seen(-3, 25), scores=scores))])
        assert metrics["image_keypoint_AP"] == pytest.approx(expected)
        assert metrics["image_keypoint_PCK@0.1"] == 1.0


@pytest.mark.parametrize("option", ["range", "no points", "no class"])
def test_what_need_not_be_found(option):
    # Expected: the second car does not count, and points on it, though they score higher, cost nothing; without them
    # nothing changes. When it counts, they are right, and missed without them.
    truth = [box(2, 20), box(-3, 25)]
    reason = {"range": {}, "no points": dict(points=[1, 0]), "no class": dict(labels=[0, -1])}[option]
    limits = dict(range_m={"car": 24.0}) if option == "range" else {}
    for predicted in (points_of(seen(2, 20), seen(-3, 25), scores=[0.5, 0.9]), points_of(seen(2, 20))):
        metrics = evaluate([sample_of(truth, predicted, **reason)], **limits)
        assert metrics["image_keypoint_gt/front"] == 1
        assert metrics["image_keypoint_AP"] == pytest.approx(1.0) and metrics["image_keypoint_PCK@0.1"] == 1.0


def test_nothing_there():
    # Expected: no points is 0; no objects is NaN; both are scored without complaint.
    metrics = evaluate([sample_of([box(2, 20)], points_of())])
    assert all(metrics[key] == 0.0 for key in SUMMARY)
    metrics = evaluate([sample_of([], points_of(seen(2, 20)))])
    assert all(math.isnan(metrics[key]) for key in SUMMARY) and metrics["image_keypoint_gt/centre"] == 0


def test_order_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(4):
        places = [(4 * x - 2, 15 + 20 * y) for x, y in torch.rand(3, 2, generator=generator).tolist()]
        found = [{name: (u + n, v - 0.5) for name, (u, v) in seen(*place).items()} for n, place in enumerate(places)]
        truth = [box(*place) for place in places]
        samples.append(sample_of(truth, points_of(*found, scores=[0.5, 0.5, 0.7]), token=f"s{index}"))
    metrics = evaluate(samples)
    assert 0.1 < metrics["image_keypoint_AP"] < 0.9
    np.testing.assert_equal(metrics, evaluate(samples[::-1]))


def test_augmentation_changes_nothing():
    # Expected: the pictures are the same whichever way the BEV frame is mirrored, turned and scaled, and so is the size
    # of what they show; ranges are those of the world (25.2 m, which would be 27.7 m at the scale of 1.1).
    from bevstack.datasets.transforms.bev_augmentation import bev_similarity

    matrix = bev_similarity(0.4, 1.1, True, False)
    truth = [box(2, 20), box(-3, 25)]
    off = {name: (u + 1.5, v + 1) for name, (u, v) in seen(-3, 25).items()}
    plain = sample_of(truth, points_of(seen(2, 20), off))
    moved = transform_boxes(torch.from_numpy(matrix), torch.tensor(truth)).tolist()
    changed = sample_of(moved, plain["pred_image_keypoints"])
    changed["augmented_from_bev"] = matrix
    changed["camera_from_bev"] = changed["camera_from_bev"] @ np.linalg.inv(matrix)
    expected, metrics = (evaluate([sample], range_m={"car": 26.0}) for sample in (plain, changed))
    assert 0.1 < expected["image_keypoint_AP"] < 0.95
    for key, value in expected.items():
        assert metrics[key] == pytest.approx(value, abs=1e-6), key


def test_what_is_refused():
    sample = sample_of([box(2, 20)], points_of(seen(2, 20)))
    with pytest.raises(InputError, match="pred_image_keypoints: sample t has none: add an ImageKeypointHead"):
        evaluate([{key: value for key, value in sample.items() if key != "pred_image_keypoints"}])
    with pytest.raises(InputError, match="camera_from_bev: sample t has none: PackBEVInputs brings it"):
        evaluate([{key: value for key, value in sample.items() if key != "camera_from_bev"}])
    with pytest.raises(InputError, match="t: sample is there more than once"):
        evaluate([sample, sample])
    with pytest.raises(InputError, match="no sample was scored"):
        evaluate([])
    with pytest.raises(InputError, match="sigmas: must be 6 positive numbers"):
        ImageKeypointMetric(CLASSES, sigmas=SIGMAS[:5])
    with pytest.raises(InputError, match="classes: neither the metric nor the dataset names them"):
        evaluate([sample], classes=None)
    for field, value, said in (("cameras", 2, "a point in another than its 2 cameras"), ("kinds", 6, "6 kinds"),
                               ("scores", math.nan, "not finite")):  # fmt: skip
        broken = points_of(seen(2, 20))
        broken[field][0] = value
        with pytest.raises(InputError, match=said):
            evaluate([sample_of([box(2, 20)], broken)])


def test_registered():
    assert METRICS.get("ImageKeypointMetric") is ImageKeypointMetric

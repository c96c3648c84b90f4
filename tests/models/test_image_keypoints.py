"""The keypoint head on image features: targets by projection, decoding, mirrors, learning, its place in the model."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.geometry.keypoints import KEYPOINT_NAMES
from bevstack.models.heads import ImageHead, ImageKeypointHead
from bevstack.models.heads.image_keypoints import image_keypoint_targets
from bevstack.structures import BEVDataSample, CameraRig
from bevstack.structures.boxes import lidar_boxes

# Two cameras at the BEV frame's origin, x right and y down: one looks along +y, the other along -y.
AHEAD = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
BEHIND = torch.tensor([[-1.0, 0, 0, 0], [0, 0, -1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
PIXELS_FROM_CAMERA = torch.tensor([[200.0, 0, 160], [0, 200, 60], [0, 0, 1]])
FLIP = torch.tensor([[-1.0, 0, 320], [0, 1, 0], [0, 0, 1]])


def rig_of(pixels_from_camera=PIXELS_FROM_CAMERA, change=None, batch=1):
    extrinsics = torch.stack([AHEAD, BEHIND]) if change is None else torch.stack([AHEAD, BEHIND]) @ change
    size = torch.tensor([120, 320]).expand(batch, 2, 2)
    return CameraRig(
        pixels_from_camera.expand(batch, 2, 3, 3), extrinsics.expand(batch, 2, 4, 4), size, (128, 320)
    )


def sample_of(*rows):
    boxes = torch.tensor(rows).reshape(-1, 9)
    sample = BEVDataSample()
    labels = torch.zeros(len(boxes)).long()
    sample.gt_instances_3d = InstanceData(bboxes_3d=lidar_boxes(boxes), labels_3d=labels)
    return sample


def box(x, y, yaw=math.pi / 2):
    return [x, y, -1.5, 4.0, 2.0, 1.0, yaw, 0.0, 0.0]


def placed(target, camera):
    """Names and pixels of what a camera sees of one object."""
    own = target.cameras == camera
    names = [KEYPOINT_NAMES[kind] for kind in target.kinds[own]]
    return dict(zip(names, target.points_px[own].tolist(), strict=True))


def perfect(target, rig, high=12.0):
    """Raw outputs on cells of 8 px that say exactly what the target asks for; every cell's offset leads to
    the nearest keypoint of the kind."""
    heatmap, offset = torch.full((1, 2, 6, 16, 40), -high), torch.zeros(1, 2, 6, 2, 16, 40)
    centers = torch.stack(torch.meshgrid(torch.arange(40), torch.arange(16), indexing="xy")) + 0.5  # (2, 16, 40)
    nearest = torch.full((2, 6, 16, 40), math.inf)
    for camera, kind, point in zip(*target, strict=True):
        column, row = (point / 8).long()
        heatmap[0, camera, kind, row, column] = high
        away = (point / 8).view(2, 1, 1) - centers
        nearer = away.norm(dim=0) < nearest[camera, kind]
        nearest[camera, kind][nearer] = away.norm(dim=0)[nearer]
        offset[0, camera, kind, :, nearer] = away[:, nearer]
    return {"heatmap": heatmap, "offset": offset.flatten(2, 3)}


def test_a_car_ahead():
    # Closed form, u = 160 + 200 x / y and v = 60 - 200 z / y: the car at (2, 20) heads away, its lower face 1.5 m
    # below the camera, its middle 1 m; the camera behind sees nothing of it.
    target = image_keypoint_targets(0, sample_of(box(2.0, 20.0)), rig_of())
    expected = {
        "centre": (160 + 200 * 2 / 20, 60 + 200 * 1.0 / 20),
        "front_left": (160 + 200 * 1 / 22, 60 + 200 * 1.5 / 22),
        "front_right": (160 + 200 * 3 / 22, 60 + 200 * 1.5 / 22),
        "rear_right": (160 + 200 * 3 / 18, 60 + 200 * 1.5 / 18),
        "rear_left": (160 + 200 * 1 / 18, 60 + 200 * 1.5 / 18),
        "front": (160 + 200 * 2 / 22, 60 + 200 * 1.5 / 22),
    }
    seen = placed(target, 0)
    assert seen.keys() == expected.keys() and placed(target, 1) == {}
    for name, place in expected.items():
        assert seen[name] == pytest.approx(place, abs=1e-3), name


def test_only_what_is_inside_the_image():
    # Closed form: at x = -8.6 m the image's left border u = 0 lies at y = 10.75: of a car at y = 11 the rear (y = 9) is
    # outside, and the front's left corner (x = -9.6, y = 13, u = 12) is inside. Its lower face at y = 13 is at v = 83.
    seen = placed(image_keypoint_targets(0, sample_of(box(-8.6, 11.0)), rig_of()), 0)
    assert set(seen) == {"centre", "front_left", "front_right", "front"}
    # and a car that stands around the camera shows only what is ahead and above the lower border, v = 120 at y = 5
    seen = placed(image_keypoint_targets(0, sample_of(box(0.0, 3.5)), rig_of()), 0)
    assert set(seen) == {"centre", "front_left", "front_right", "front"}


@pytest.mark.parametrize("mirror_image", [False, True])
@pytest.mark.parametrize("mirror_world", [False, True])
def test_names_fit_the_picture(mirror_image, mirror_world):
    # Expected: left and right by what the picture shows: seen from behind, a car's left side is on the picture's left,
    # also in a mirrored picture, and whichever way the BEV frame was mirrored.
    from bevstack.datasets.transforms.bev_augmentation import bev_similarity
    from bevstack.geometry.boxes3d import transform_boxes

    matrix = torch.from_numpy(bev_similarity(0.3, 1.0, mirror_world, False)).float()
    moved = transform_boxes(matrix, torch.tensor([box(2.0, 20.0)]))[0].tolist()
    pixels_from_camera = FLIP @ PIXELS_FROM_CAMERA if mirror_image else PIXELS_FROM_CAMERA
    seen = placed(image_keypoint_targets(0, sample_of(moved), rig_of(pixels_from_camera, torch.linalg.inv(matrix))), 0)
    plain = placed(image_keypoint_targets(0, sample_of(box(-2.0 if mirror_image else 2.0, 20.0)), rig_of()), 0)
    assert seen["front_left"][0] < seen["front_right"][0]
    for name in KEYPOINT_NAMES:
        assert seen[name] == pytest.approx(plain[name], abs=1e-2), name


def test_perfect_heatmaps_give_the_points_back():
    # Expected: the targets' pixels; rays are (x / z, y / z) of the points in the camera's frame.
    rig, sample = rig_of(), sample_of(box(2.0, 20.0), box(-3.0, -15.0, 0.3))
    target = image_keypoint_targets(0, sample, rig)
    assert set(target.cameras.tolist()) == {0, 1} and len(target.kinds) == 12
    found = ImageKeypointHead(8).predict(perfect(target, rig), rig)[0]["pred_image_keypoints"]
    assert len(found.scores) == 12 and (found.scores > 0.99).all()
    for camera in (0, 1):
        for kind in range(6):
            own = (found.cameras == camera) & (found.kinds == kind)
            true = (target.cameras == camera) & (target.kinds == kind)
            torch.testing.assert_close(found.points_px[own], target.points_px[true], atol=1e-3, rtol=0)
    u, v = found.points_px.unbind(-1)
    torch.testing.assert_close(found.rays, torch.stack([(u - 160) / 200, (v - 60) / 200], dim=-1), atol=1e-5, rtol=0)


def test_losses():
    # Expected: nearly nothing for a perfect answer, finite ones with and without objects, gradients everywhere.
    torch.manual_seed(0)
    head, rig = ImageKeypointHead(8, channels=12, level=1), rig_of(batch=2)
    samples = [sample_of(box(2.0, 20.0)), sample_of()]
    one = image_keypoint_targets(0, samples[0], rig_of())
    losses = head.loss(perfect(one, rig_of()), samples[:1], rig_of())
    assert losses["loss_heatmap"] < 1e-2 and losses["loss_offset"] < 1e-4
    features = [torch.randn(2, 2, 8, 32, 80), torch.randn(2, 2, 8, 16, 40, requires_grad=True)]
    raw = head(features)
    assert raw["heatmap"].shape == (2, 2, 6, 16, 40) and raw["offset"].shape == (2, 2, 12, 16, 40)
    empty = head.loss(raw, [sample_of(), sample_of()], rig)
    assert empty["loss_offset"] == 0 and empty["loss_heatmap"].isfinite()
    sum(head.loss(raw, samples, rig).values()).backward()
    assert features[1].grad.abs().sum() > 0
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("reach", [0, 1])
def test_the_cells_around_learn_the_offset(reach):
    # Expected: of offsets that are wrong by one cell everywhere, the loss is 2 (u and v) a keypoint, whatever the
    # reach; the gradient stands in the (2 reach + 1)^2 cells around each of the six, and in the keypoint's most.
    rig, sample = rig_of(), sample_of(box(2.0, 20.0))
    target = image_keypoint_targets(0, sample, rig)
    raw = perfect(target, rig)
    raw["offset"] = (raw["offset"] + 1.0).requires_grad_()
    head = ImageKeypointHead(8, criterion=dict(offset_weight=1.0, reach_cells=reach))
    loss = head.loss(raw, [sample], rig)["loss_offset"]
    assert loss.item() == pytest.approx(2.0, abs=1e-4)
    loss.backward()
    gradient = raw["offset"].grad.unflatten(2, (6, 2))[0, 0].sum(1)  # of the camera ahead: (6, 16, 40)
    assert (gradient.flatten(1).count_nonzero(1) == (2 * reach + 1) ** 2).all()
    for kind, point in zip(target.kinds, target.points_px, strict=True):
        column, row = (point / 8).long().tolist()
        assert gradient[kind, row, column] == gradient[kind].max()


def test_it_learns_a_scene():
    # Expected: features and head fitted to two cameras' views of three cars give their keypoints back to a pixel.
    torch.manual_seed(0)
    head, rig = ImageKeypointHead(8, channels=16), rig_of()
    sample = sample_of(box(2.0, 20.0), box(-3.0, -15.0, 0.3), box(-6.0, 24.0, 2.0))
    features = torch.randn(1, 2, 8, 16, 40, requires_grad=True)
    optimizer = torch.optim.Adam([features, *head.parameters()], lr=0.02)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 150)
        optimizer.zero_grad()
        sum(head.loss(head([features]), [sample], rig).values()).backward()
        optimizer.step()
    found = head.predict(head([features]), rig)[0]["pred_image_keypoints"]
    found = found[found.scores > 0.5]
    target = image_keypoint_targets(0, sample, rig)
    for camera, kind, point in zip(*target, strict=True):
        own = found.points_px[(found.cameras == camera) & (found.kinds == kind)]
        assert (own - point).norm(dim=-1).min() < 1.0
    assert len(found.scores) == len(target.kinds) == 18


def test_the_model_sets_what_an_image_head_predicts():
    # Expected: the head's own answer, on the samples, beside the other heads'; an image head that only trains is quiet.
    from bevstack.structures import Clip
    from tests.models.scenes import labels_of
    from tests.models.test_perception import GRID, build, frames_of

    keypoints = dict(type="ImageKeypointHead", in_channels=16, channels=6, decoding=dict(score_threshold=0.0))
    model = build(image_heads=dict(keypoints=keypoints)).eval()
    quiet = type("Quiet", (ImageHead,), dict.fromkeys(("forward", "loss"), lambda *arguments: {}))
    model.image_heads["quiet"] = quiet(16)
    samples, clip = labels_of(GRID, [2, 3]), Clip(tuple(frames_of(1)))
    with torch.no_grad():
        results = model(clip, samples, "predict")
        features = model.image_features(clip.frames[-1])
        head = model.image_heads["keypoints"]
        expected = head.predict(head(features), clip.frames[-1].rig)
    for result, fields in zip(results, expected, strict=True):
        assert "pred_instances_3d" in result and len(result.pred_image_keypoints.scores) > 0
        for name, value in fields["pred_image_keypoints"].items():
            assert torch.equal(result.pred_image_keypoints[name], value), name
    losses = build(image_heads=dict(keypoints=keypoints))(clip, samples, "loss")
    assert {"keypoints.loss_heatmap", "keypoints.loss_offset"} <= set(losses)

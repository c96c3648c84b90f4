"""The contract of every registered head on image features; a new one needs a line in ``HEADS``."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from bevstack.geometry import BEVGrid
from bevstack.models.heads import ImageHead
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, CameraRig
from bevstack.structures.boxes import lidar_boxes
from tests.models.scenes import CLASSES, labels_of, only, rig_of
from tests.models.test_heads import registered, tensors_of, total

CHANNELS, CAMERAS, SIZE_PX, STRIDES = 8, 3, (64, 96), (8, 16)
GRID = BEVGrid(shape=(8, 8), x_range_m=(-12, 12), y_range_m=(-12, 12))

_small_detector = dict(
    feat_channels=32,
    cls_branch=(32,),
    reg_branch=((32,),) * 4,
    dir_branch=(32,),
    centerness_branch=(32,),
    stacked_convs=1,
)
HEADS = {
    "ImageKeypointHead": [
        dict(channels=6, decoding=dict(score_threshold=0.0)),
        dict(channels=6, decoding=dict(score_threshold=0.0), level=1, criterion=dict(reach_cells=0)),
    ],
    "PerspectiveHead": [
        dict(classes=CLASSES, strides=STRIDES, regress_ranges=((-1, 24), (24, 1e8)), detector=_small_detector)
    ],
}


def levels_of(b: int, n: int, sizes, channels: dict[str, int]) -> dict[str, tuple[int, ...]]:
    return {f"{k}.{i}": (b, n, c, *size) for k, c in channels.items() for i, size in enumerate(sizes)}


SHAPES = {  # of the raw outputs for B samples of N cameras at levels of the given sizes, from the heads' docstrings
    "ImageKeypointHead": lambda case, b, n, sizes: {
        "heatmap": (b, n, 6, *sizes[case.get("level", 0)]),
        "offset": (b, n, 12, *sizes[case.get("level", 0)]),
    },
    "PerspectiveHead": lambda case, b, n, sizes: levels_of(
        b, n, sizes, {"scores": 3, "boxes": 7, "directions": 2, "centerness": 1}
    ),
}
FIELDS = {"ImageKeypointHead": {"pred_image_keypoints"}, "PerspectiveHead": set()}  # what each predicts
CASES = [pytest.param((name, n), id=f"{name}-{n}") for name, entries in HEADS.items() for n in range(len(entries))]


def build(case, nonzero=True) -> ImageHead:
    """A head whose every parameter counts: nothing stays at a zero initialisation."""
    name, entry = case
    torch.manual_seed(0)
    head = MODELS.build(dict(type=f"bevstack.{name}", in_channels=CHANNELS, **HEADS[name][entry]))
    for module in head.modules() if nonzero else ():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    return head


def sizes_of() -> list[tuple[int, int]]:
    return [(SIZE_PX[0] // stride, SIZE_PX[1] // stride) for stride in STRIDES]


def features_of(batch=2, seed=1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, CAMERAS, CHANNELS, *size, generator=generator) for size in sizes_of()]


def rig(batch=2) -> CameraRig:
    return rig_of([[90.0 + 120 * n for n in range(CAMERAS)], [70.0 - 100 * n for n in range(CAMERAS)]][:batch], SIZE_PX)


def samples_of(counts=(12, 9)) -> list[BEVDataSample]:
    return labels_of(GRID, list(counts))


def test_every_registered_image_head_is_tested_here():
    # Expected: what the registry says.
    assert set(HEADS) == registered(ImageHead) == set(SHAPES) == set(FIELDS)


@pytest.mark.parametrize("case", CASES)
def test_shapes(case):
    head, name = build(case), case[0]
    raw = head(features_of())
    found = {key: tuple(value.shape) for key, value in raw.items()}
    assert found == SHAPES[name](HEADS[name][case[1]], 2, CAMERAS, sizes_of())
    predictions = head.predict(raw, rig())
    assert len(predictions) == 2
    for fields in predictions:
        assert set(fields) == FIELDS[name]
        for instances in fields.values():
            assert isinstance(instances, InstanceData) and len(instances) > 0


@pytest.mark.parametrize("counts", [(12, 9), (0, 9), (0, 0)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_losses_are_finite_scalars_also_without_boxes(case, counts):
    head = build(case)
    losses = head.loss(head(features_of()), samples_of(counts), rig())
    assert any("loss" in key for key in losses)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_finite_gradient(case):
    head, features = build(case), features_of()
    for level in features:
        level.requires_grad_()
    total(head.loss(head(features), samples_of(), rig())).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert sum(level.grad.abs().sum() for level in features if level.grad is not None) > 0


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_two_equals_two_batches_of_one(case):
    # Losses are means over true objects: two cameras' images of the same objects, so that both samples weigh the same.
    head, features, sample = build(case).eval(), features_of(), samples_of()[:1]
    samples = sample * 2
    cameras = replace(rig(), camera_from_bev=rig().camera_from_bev[:1].repeat(2, 1, 1, 1))
    together = head(features)
    predicted = head.predict(together, cameras)
    losses = dict.fromkeys(head.loss(together, samples, cameras), 0.0)
    for b in range(2):
        own = only(cameras, b)
        alone = head([level[b : b + 1] for level in features])
        for name, value in alone.items():
            torch.testing.assert_close(together[name][b : b + 1], value, rtol=1e-4, atol=1e-4)
        fields = tensors_of(head.predict(alone, own)[0])
        for name, value in tensors_of(predicted[b]).items():
            torch.testing.assert_close(value, fields[name], rtol=1e-4, atol=1e-4)
        for key, value in head.loss(alone, sample, own).items():
            losses[key] = losses[key] + value / 2
    for key, value in head.loss(together, samples, cameras).items():
        torch.testing.assert_close(value, losses[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_each_sample_is_asked_for_its_own_objects_by_its_own_cameras(case):
    # Two samples that differ in everything, in one order and in the other: the same losses.
    head, features, samples, cameras = build(case).eval(), features_of(), samples_of(), rig()
    turned = replace(
        cameras,
        camera_from_bev=cameras.camera_from_bev.flip(0),
        pixels_from_camera=cameras.pixels_from_camera.flip(0),
        image_size_px=cameras.image_size_px.flip(0),
    )
    losses = head.loss(head(features), samples, cameras)
    other_way = head.loss(head([level.flip(0) for level in features]), samples[::-1], turned)
    wrong = head.loss(head([level.flip(0) for level in features]), samples[::-1], cameras)
    for key, value in losses.items():
        torch.testing.assert_close(value, other_way[key], rtol=1e-4, atol=1e-5)
    assert not torch.isclose(total(wrong), total(losses), rtol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded(case, tmp_path):
    head, features = build(case).eval(), features_of()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    other = build(case, nonzero=False).eval()
    assert any(not torch.equal(a, b) for a, b in zip(head(features).values(), other(features).values(), strict=True))
    other.load_state_dict(torch.load(tmp_path / "head.pth", weights_only=True))
    for name, value in other(features).items():
        assert torch.equal(value, head(features)[name]), name


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast(case):
    # Expected: the float32 outputs to bfloat16's precision (8 bits of mantissa, some layers deep).
    head, features, samples = build(case).eval(), features_of(), samples_of()
    exact = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        raw = head([level.bfloat16() for level in features])
        losses = head.loss(raw, samples, rig())
        of_exact = head.loss(exact, samples, rig())
        predictions = head.predict(raw, rig())
    for key, value in head.loss(exact, samples, rig()).items():  # targets know nothing of autocast
        torch.testing.assert_close(of_exact[key], value)
    for name, value in raw.items():
        error = (value.float() - exact[name]).abs().mean() / exact[name].abs().mean()
        assert error < 0.1, f"{name}: mean relative error {error:.3f}"
    assert total(losses).isfinite() and total(losses).dtype == torch.float32
    for fields in predictions:
        for name, value in tensors_of(fields).items():
            assert value.dtype in (torch.float32, torch.int64) and value.isfinite().all(), name
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("case", CASES)
def test_where_the_images_show_nothing(case):
    # Features all zero: a head still answers with finite numbers, and trains.
    head, samples = build(case), samples_of((3, 0))
    raw = head([torch.zeros_like(level) for level in features_of()])
    assert all(value.isfinite().all() for value in raw.values())
    losses = total(head.loss(raw, samples, rig()))
    losses.backward()
    assert losses.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    for fields in head.predict(raw, rig()):
        assert all(value.isfinite().all() for value in tensors_of(fields).values())


def test_a_head_that_lacks_a_method():
    incomplete = type("Incomplete", (ImageHead,), {"forward": lambda *arguments: {}})
    with pytest.raises(TypeError) as caught:
        incomplete(CHANNELS)
    assert str(caught.value) == "Incomplete lacks loss(); a head on images implements forward() and loss()"


def test_a_head_that_only_trains_predicts_nothing():
    quiet = type("Quiet", (ImageHead,), dict.fromkeys(("forward", "loss"), lambda *arguments: {}))
    assert quiet(CHANNELS).predict({}, rig()) == [{}, {}]


def test_boxes_that_no_camera_sees_are_no_targets():
    # All objects far behind every camera's far plane of a few pixels: losses as without any object.
    sample = BEVDataSample()
    far = torch.tensor([[0.0, 5000.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]])
    sample.gt_instances_3d = InstanceData(bboxes_3d=lidar_boxes(far), labels_3d=torch.zeros(1, dtype=torch.long))
    head, features = build(("PerspectiveHead", 0)).eval(), features_of(1)
    without = head.loss(head(features), samples_of((0,)), rig(1))
    for key, value in head.loss(head(features), [sample], rig(1)).items():
        torch.testing.assert_close(value, without[key])

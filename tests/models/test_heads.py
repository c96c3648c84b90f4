"""The contract of every registered head. A new head is tested by being registered and having a line in ``HEADS``."""

from __future__ import annotations

import importlib
import pkgutil
from contextlib import nullcontext
from dataclasses import is_dataclass, replace
from unittest import mock

import pytest
import torch
from mmdet3d.structures import BaseInstance3DBoxes
from mmengine.structures import InstanceData
from torch import nn

import bevstack.models.heads
import bevstack.reference
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.heads import BEVHead, BoxHead, LabelledBoxes
from bevstack.models.heads.base import detected_boxes, resample_bev, target_raster
from bevstack.models.perception import raw_of
from bevstack.registry import MODELS
from bevstack.structures import AlignedHistory, BEVDataSample, BEVFeatures, BEVRaster
from tests.models.scenes import CLASSES, LAYERS, labels_of, only

CHANNELS = 8
BEV_GRID = BEVGrid(shape=(8, 12), x_range_m=(-24, 24), y_range_m=(-8, 24))
SQUARE = BEVGrid(shape=(8, 8), x_range_m=(-16, 16), y_range_m=(-16, 16))
FINER = BEVGrid(shape=(10, 20), x_range_m=(-20, 20), y_range_m=(-10, 10))  # 2 m cells, in part outside B_t

_small = dict(num_layers=2, num_heads=2, feed_forward_channels=16)
_queries = dict(classes=CLASSES, num_queries=20, decoder=dict(_small, dropout=0.0))
_segmentation = dict(raster="map", classes=LAYERS, channels=6)
_behaviour = dict(classes=CLASSES, channels=8, history_channels=CHANNELS, num_frames=3)
_masks = dict(things=CLASSES, stuff=LAYERS[::-1], channels=8, num_queries=12, pixel_decoder=dict(channels=6))
_masks |= dict(decoding=dict(object_threshold=0.0, overlap_threshold=0.0))
_all_peaks = dict(classes=CLASSES, channels=6, decoding=dict(score_threshold=0.0))
_appearance = dict(embedding_channels=5, channels=6)
HEADS = {
    "AppearanceHead": [{**_appearance, "history_channels": CHANNELS}, {**_appearance, "use_history": False}],
    "BehaviourHead": [
        {**_behaviour, "on_truth": True},
        {**_behaviour, "temporal": dict(type="TrackConvolution")},
        {**_behaviour, "temporal": dict(type="TrackTransformer", num_layers=1, num_heads=2)},
    ],
    "DenseDetectionHead": [
        _all_peaks,
        {**_all_peaks, "upscale": 2, "criterion": dict(reach_cells=0)},
        {**_all_peaks, "upscale": 2, "common": True},
        {**_all_peaks, "outputs": dict(heading_bins=6, moving=True, quality=True)},
    ],
    "QueryDetectionHead": [_queries],
    "KeypointHead": [
        _all_peaks,
        {**_all_peaks, "criterion": dict(reach_cells=0)},
    ],
    "MaskSegmentationHead": [
        {**_masks, "decoder": dict(_small, token_stride=2)},
        {**_masks, "decoder": dict(_small, token_stride=2, num_layers=1, masked_attention=True)},
        {
            **_masks,
            "decoder": dict(_small, token_stride=2, head_width="replicated"),
            "criterion": dict(sampled_cells=40),
        },
    ],
    "OldBoxesDetectionHead": [_queries],
    "SceneHead": [
        dict(dropout=0.0, channels=16),
        dict(dropout=0.0, channels=16, image_channels=CHANNELS, class_weights=dict(weather=(1.0, 3.0))),
    ],
    "SemanticSegmentationHead": [
        _segmentation,
        {**_segmentation, "resample": "logits"},
        {**_segmentation, "upscale": 2},
        {**_segmentation, "resample": "logits", "upscale": 2},
    ],
}
SHAPES = {  # of what loss and predict read, on a grid of Y x X cells for B samples, from the heads' docstrings
    "AppearanceHead": lambda b, y, x, use_history=True, **_: {"field": (b, 6, y, x)}
    | ({"history": (b, 2, CHANNELS, y, x), "history_valid": (b, 2)} if use_history else {}),
    "BehaviourHead": lambda b, y, x, **_: {
        "current": (b, 8, y, x),
        "history": (b, 3, CHANNELS, y, x),
        "valid": (b, 3),
        "seconds": (b, 3),
    },
    "DenseDetectionHead": lambda b, y, x, outputs=None, **_: {"heatmap": (b, 3, y, x)}
    | (
        {"box": (b, 6, y, x), "heading": (b, 12, y, x), "motion": (b, 3, y, x), "quality": (b, 1, y, x)}
        if outputs
        else {"box": (b, 10, y, x)}
    ),
    "QueryDetectionHead": lambda b, y, x, **_: {"logits": (2, b, 20, 3), "boxes": (2, b, 20, 10)},
    "KeypointHead": lambda b, y, x, **_: {
        "heatmap": (b, 3, y, x),
        "keypoint_heatmap": (b, 5, y, x),
        "offset": (b, 12, y, x),
        "vectors": (b, 10, y, x),
    },
    "MaskSegmentationHead": lambda b, y, x, **_: {
        "logits": (b, 2, 12, 6),
        "mask_embeddings": (b, 2, 12, 6 + 32 + 1),
        "cell_embeddings": (b, 6, y, x),
    },
    "OldBoxesDetectionHead": lambda b, y, x, **_: {"logits": (2, b, 20, 3), "boxes": (2, b, 20, 10)},
    "SceneHead": lambda b, y, x, **_: {"time": (b, 2), "weather": (b, 2)},
    "SemanticSegmentationHead": lambda b, y, x, **_: {"logits": (b, 2, y, x)},
}
DESCRIPTIONS = {  # of n boxes, from the docstrings of the heads on boxes
    "AppearanceHead": lambda n: {"embeddings": (n, 5)},
    "BehaviourHead": lambda n: {"logits": (n, 8)},
}
SAMPLE_DIMENSION = {"QueryDetectionHead": 1, "OldBoxesDetectionHead": 1}  # of the raw outputs, 0 elsewhere
FIELDS = {  # what a head predicts, where it is neither boxes nor rasters
    "BehaviourHead": {"pred_instances_3d", "pred_on_truth_3d"},
    "SceneHead": {"pred_scene"},
    "KeypointHead": {"pred_keypoints"},
    "MaskSegmentationHead": {"pred_panoptic", "pred_masks"},
}
BOX_CASES = [pytest.param((name, n), id=f"{name}-{n}") for name in DESCRIPTIONS for n in range(len(HEADS[name]))]
CASES = [pytest.param((name, n), id=f"{name}-{n}") for name, entries in HEADS.items() for n in range(len(entries))]


def registered(kind: type) -> set[str]:
    """Names of this package's heads of one kind in the registry, once every module that may hold one is imported."""
    for package in (bevstack.models.heads, bevstack.reference):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    return {
        name
        for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, kind) and cls.__module__.startswith("bevstack.")
    }


def build(case, grid=BEV_GRID, nonzero=True) -> BEVHead:
    """A head whose every parameter counts: nothing stays at a zero initialisation."""
    name, entry = case
    torch.manual_seed(0)
    head = MODELS.build(dict(type=f"bevstack.{name}", in_channels=CHANNELS, grid=grid, **HEADS[name][entry]))
    for module in head.modules() if nonzero else ():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
            nn.init.normal_(module.weight, std=0.3)
    return head


def bev_of(batch=2, grid=BEV_GRID, seed=1) -> BEVFeatures:
    """B_t with two past frames (a sample's second is missing) and two levels of three cameras' features."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    features = random(batch, CHANNELS, *grid.shape)
    valid = torch.ones(batch, 2, dtype=torch.bool)
    valid[0, 1] = False
    past = random(batch, 2, CHANNELS, *grid.shape)
    history = AlignedHistory(past, grid, valid, torch.tensor([[0.5, 1.1]]).repeat(batch, 1))
    images = (random(batch, 3, CHANNELS, 4, 6), random(batch, 3, CHANNELS, 2, 3))
    encoded = BEVFeatures(random(batch, CHANNELS, *grid.shape), grid)
    return BEVFeatures(features, grid, encoded, history, images)


def changed(bev: BEVFeatures, change) -> BEVFeatures:
    """A copy with ``change`` done to every feature map."""
    history = replace(bev.history, features=change(bev.history.features))
    encoded = replace(bev.encoded, features=change(bev.encoded.features))
    return BEVFeatures(change(bev.features), bev.grid, encoded, history, tuple(map(change, bev.image_features)))


def total(losses: dict) -> torch.Tensor:
    return sum(value for key, value in losses.items() if "loss" in key)


def tensors_of(value, name="") -> dict[str, torch.Tensor]:
    """Every tensor and every name in what a head predicts for a sample, by its place in it."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    if isinstance(value, BaseInstance3DBoxes):
        return {name: value.tensor}
    if isinstance(value, str | int | float):
        return {name: torch.tensor([ord(letter) for letter in repr(value)])}
    if isinstance(value, InstanceData):
        parts = value.items()
    elif isinstance(value, dict):
        parts = value.items()
    elif is_dataclass(value):
        parts = vars(value).items()
    else:
        parts = enumerate(value)
    return {key: tensor for part, entry in parts for key, tensor in tensors_of(entry, f"{name}/{part}").items()}


def test_every_registered_head_is_tested_here():
    # Expected: what the registry says.
    assert set(HEADS) == registered(BEVHead) == set(SHAPES)


@pytest.mark.parametrize("grid", [BEV_GRID, SQUARE, FINER], ids=["not-square", "square", "own-grid"])
@pytest.mark.parametrize("case", CASES)
def test_shapes(case, grid):
    head = build(case, grid)
    raw = raw_of(head, bev_of())
    expected = SHAPES[case[0]](2, *grid.shape, **HEADS[case[0]][case[1]])
    assert {name: tuple(value.shape) for name, value in raw.items()} == expected
    samples = labels_of(grid, [2, 3])
    predictions = head.predict(raw, samples)
    assert len(predictions) == 2
    for fields in predictions:
        assert fields and set(fields) <= FIELDS.get(case[0], {"pred_instances_3d", "pred_rasters"})
        for instances in (value for name, value in fields.items() if name == "pred_instances_3d"):
            number = len(instances.scores_3d)
            assert instances.bboxes_3d.tensor.shape == (number, 9) and instances.labels_3d.shape == (number,)
            assert ((instances.labels_3d >= 0) & (instances.labels_3d < len(CLASSES))).all()
        for raster in fields.get("pred_rasters", {}).values():
            assert raster.layers.shape == (len(raster.classes), *grid.shape) and raster.grid.same_as(grid)
            assert raster.layers.is_floating_point() and raster.layers.min() >= 0 and raster.layers.max() <= 1


@pytest.mark.parametrize("counts", [[3, 2], [0, 2], [0, 0]], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_losses_are_finite_scalars_also_without_boxes(case, counts):
    head = build(case)
    losses = head.loss(raw_of(head, bev_of()), labels_of(BEV_GRID, counts))
    assert any("loss" in key for key in losses)
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    total(losses).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("name", ["DenseDetectionHead", "KeypointHead", "QueryDetectionHead"])
def test_objects_that_nothing_is_learned_from_are_counted(name):
    """Of boxes spread over a grid, those of which the head's own grid of half the size holds no centre."""
    head, samples = build((name, 0), FINER), labels_of(BEV_GRID, [6, 9])
    centres = torch.cat([sample.gt_instances_3d.bboxes_3d.tensor[:, :2] for sample in samples]).abs()
    beyond = ((centres[:, 0] > 20) | (centres[:, 1] > 10)).sum().item()
    assert beyond > 0 and head.loss(raw_of(head, bev_of()), samples)["objects_beyond_grid"].item() == beyond
    inside = labels_of(FINER, [6, 9])
    assert head.loss(raw_of(head, bev_of()), inside)["objects_beyond_grid"].item() == 0


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_finite_gradient(case):
    head, bev = build(case), bev_of()
    bev.features.requires_grad_()
    total(head.loss(raw_of(head, bev), labels_of(BEV_GRID, [3, 2]))).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert bev.features.grad.isfinite().all() and bev.features.grad.abs().sum() > 0


@pytest.mark.parametrize("case", CASES)
def test_a_batch_of_two_equals_two_batches_of_one(case):
    head, bev, samples = build(case).eval(), bev_of(), labels_of(BEV_GRID, [3, 3])
    together, dim = raw_of(head, bev), SAMPLE_DIMENSION.get(case[0], 0)
    predicted = head.predict(together, samples)
    losses = dict.fromkeys(head.loss(together, samples), 0.0)
    for b in range(2):
        alone = raw_of(head, only(bev, b))
        for name, value in alone.items():
            torch.testing.assert_close(together[name].narrow(dim, b, 1), value, rtol=1e-4, atol=1e-4)
        fields = tensors_of(head.predict(alone, samples[b : b + 1])[0])
        for name, value in tensors_of(predicted[b]).items():
            assert value.numel(), name
            torch.testing.assert_close(value, fields[name], rtol=1e-4, atol=1e-4)
        for key, value in head.loss(alone, samples[b : b + 1]).items():
            losses[key] = losses[key] + value / 2
    # Losses are means over true boxes, cells, layers or samples: equally many in both samples.
    for key, value in head.loss(together, samples).items():
        torch.testing.assert_close(value, losses[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded(case, tmp_path):
    head, bev = build(case).eval(), bev_of()
    torch.save(head.state_dict(), tmp_path / "head.pth")
    other = build(case, nonzero=False).eval()
    pairs = zip(raw_of(head, bev).values(), raw_of(other, bev).values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    other.load_state_dict(torch.load(tmp_path / "head.pth", weights_only=True))
    for name, value in raw_of(other, bev).items():
        assert torch.equal(value, raw_of(head, bev)[name]), name


@pytest.mark.parametrize("grid", [BEV_GRID, FINER], ids=["same-grid", "own-grid"])
@pytest.mark.parametrize("case", CASES)
def test_bfloat16_autocast(case, grid):
    # Expected: the float32 outputs to bfloat16's precision (8 bits of mantissa, some layers deep).
    head, bev, samples = build(case, grid).eval(), bev_of(), labels_of(grid, [3, 2])
    exact = raw_of(head, bev)
    with torch.autocast("cpu", torch.bfloat16):
        raw = raw_of(head, changed(bev, torch.Tensor.bfloat16))
        losses = head.loss(raw, samples)
        predictions = head.predict(raw, samples)
    for name, value in raw.items():
        error = (value.float() - exact[name]).abs().mean() / exact[name].abs().mean()
        assert error < 0.1, f"{name}: mean relative error {error:.3f}"
    assert total(losses).isfinite() and total(losses).dtype == torch.float32
    for fields in predictions:
        for name, value in tensors_of(fields).items():
            assert value.dtype in (torch.float32, torch.int64, torch.bool) and value.isfinite().all(), name
    total(losses).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("case", CASES)
def test_where_no_camera_saw_anything(case):
    # B_t all zero: a head still answers with finite numbers, and trains.
    head, samples = build(case), labels_of(BEV_GRID, [1, 0])
    raw = raw_of(head, changed(bev_of(), torch.zeros_like))
    assert all(value.isfinite().all() for value in raw.values())
    losses = total(head.loss(raw, samples))
    losses.backward()
    assert losses.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())
    for fields in head.predict(raw, samples):
        assert all(value.isfinite().all() for value in tensors_of(fields).values())


@pytest.mark.parametrize("case", BOX_CASES)
def test_boxes_are_described_by_forward(case):
    # Expected: forward is describe after encode; shapes as documented, also without boxes; each box for itself.
    head, bev, samples = build(case).eval(), bev_of(), labels_of(BEV_GRID, [4, 0])
    boxes = detected_boxes(samples, "cpu")
    answers = head(bev, boxes)
    assert isinstance(head, BoxHead) and head.requires == ("detection",)
    for number, answer in zip((4, 0), answers, strict=True):
        assert {name: tuple(value.shape) for name, value in answer.items()} == DESCRIPTIONS[case[0]](number)
    encoded = head.encode(bev)
    for row in range(4):
        one = [LabelledBoxes(boxes[0].boxes[row : row + 1], boxes[0].labels[row : row + 1]), boxes[1]]
        for name, value in head.describe(encoded, one)[0].items():
            assert not value.isnan().any()
            torch.testing.assert_close(value, answers[0][name][row : row + 1], rtol=1e-4, atol=1e-5)
    for name, value in head(only(bev, 1), boxes[:1])[0].items():  # and its own sample alone
        moved = head(only(bev, 0), boxes[:1])[0][name]
        torch.testing.assert_close(moved, answers[0][name], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(moved, value)


@pytest.mark.parametrize("case", BOX_CASES)
def test_boxes_are_described_without_a_look_at_values(case):
    # Expected: on the meta device, which has none, the same shapes: so that a count or an export can run it.
    head = build(case).eval().to("meta")
    boxes = LabelledBoxes(torch.empty(7, 9, device="meta"), torch.empty(7, dtype=torch.long, device="meta"))
    with mock.patch("torch.autocast", lambda *_, **__: nullcontext()):  # refuses the meta device, even to be off
        (answer,) = head(bev_of(1).to("meta"), [boxes])
    assert {name: tuple(value.shape) for name, value in answer.items()} == DESCRIPTIONS[case[0]](7)


def test_recent_frames_lie_on_the_head_s_own_grid():
    # Expected: each frame resampled by metres, the current one first; what a sample lacks is zero, of unknown age and
    # not valid, whether it is marked so or the history ends before.
    head = build(("BehaviourHead", 0), FINER)
    head.history_frames = 3
    bev = bev_of()
    frames = head.recent_frames(bev)
    history = bev.history.features
    for place, features in enumerate((bev.encoded.features, history[:, 0], history[:, 1])):
        expected = resample_bev(BEVFeatures(features, BEV_GRID), FINER)
        torch.testing.assert_close(frames.features[1, place], expected[1])
    assert frames.valid.tolist() == [[True, True, False, False], [True, True, True, False]]
    assert (frames.features[0, 2:] == 0).all() and (frames.features[1, 3] == 0).all()
    torch.testing.assert_close(frames.seconds[1], torch.tensor([0.0, 0.5, 1.1, torch.nan]), equal_nan=True)
    first = head.recent_frames(replace(bev, history=None))
    assert first.valid.tolist() == [[True, False, False, False]] * 2
    assert torch.equal(first.features[:, 0], frames.features[:, 0]) and (first.features[:, 1:] == 0).all()
    with pytest.raises(ValueError, match="BehaviourHead compares past frames with bev.encoded, and there is none"):
        head.recent_frames(replace(bev, encoded=None))


def test_resampling_is_by_metres():
    # Closed form: features that are linear in x and y come out linear; bilinear sampling reproduces them exactly
    # wherever all four neighbours exist, whatever the two grids' cells and extents; outside B_t stand zeros.
    x, y = BEV_GRID.cell_centers().unbind(-1)
    bev = BEVFeatures(torch.stack([x, y, 3 * x - 2 * y + 1]).unsqueeze(0), BEV_GRID)
    sampled = resample_bev(bev, FINER)[0]
    x, y = FINER.cell_centers().unbind(-1)
    cell_x, cell_y = BEV_GRID.cell_m
    inner = (x.abs() <= 24 - cell_x / 2) & (y >= -8 + cell_y / 2) & (y <= 24 - cell_y / 2)
    outside = (y < -8 - cell_y / 2) | (y > 24 + cell_y / 2)
    assert 0 < inner.sum() < inner.numel()
    expected = torch.stack([x, y, 3 * x - 2 * y + 1])
    torch.testing.assert_close(sampled[:, inner], expected[:, inner], rtol=1e-4, atol=1e-4)
    assert (sampled[:, outside] == 0).all()
    assert resample_bev(bev, BEV_GRID) is bev.features


def test_rows_and_columns_keep_their_direction():
    # A single lit cell at (x, y) = (-10 m, 14 m) lights the cells of another grid around that very place.
    features = torch.zeros(1, 1, *BEV_GRID.shape)
    column, row = BEV_GRID.cells_from_metres(torch.tensor([-10.0, 14.0])).long().tolist()
    features[0, 0, row, column] = 1
    fine = BEVGrid(shape=(32, 48), x_range_m=(-24, 24), y_range_m=(-8, 24))
    lit = resample_bev(BEVFeatures(features, BEV_GRID), fine)[0, 0]
    centers = fine.cell_centers()[lit == lit.max()]
    assert lit.max() > 0.7
    torch.testing.assert_close(centers.mean(0), torch.tensor([-10.0, 14.0]))


@pytest.mark.parametrize("case", [("SemanticSegmentationHead", 0), ("SemanticSegmentationHead", 1)], ids=str)
def test_a_raster_head_sees_the_ground_of_its_own_grid(case):
    # Two B_t on different grids that say the same of the ground (linear in metres) give the same map where both see.
    head = build(case, SQUARE).eval()
    for module in head.modules():  # per cell: no neighbour that one of the two grids may not have
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            center = module.weight.data[:, :, 1, 1].clone()
            module.weight.data.zero_()
            module.weight.data[:, :, 1, 1] = center
        if isinstance(module, nn.ReLU):  # linear in B_t, so that it does not matter what is resampled
            module.forward = lambda features: features

    def linear(grid: BEVGrid) -> BEVFeatures:
        x, y = grid.cell_centers().unbind(-1)
        pattern = torch.stack([x, y, torch.ones_like(x)] * 3)[:CHANNELS] / 20
        return BEVFeatures(pattern.unsqueeze(0), grid)

    wide = BEVGrid(shape=(40, 44), x_range_m=(-22, 22), y_range_m=(-20, 20))
    one_grid, other = head(linear(SQUARE))["logits"], head(linear(wide))["logits"]
    torch.testing.assert_close(one_grid, other, rtol=1e-3, atol=1e-3)
    assert one_grid.std() > 0.01


def raster_sample(grid=BEV_GRID, classes=LAYERS) -> BEVDataSample:
    sample = BEVDataSample(metainfo=dict(token="t"))  # noqa: S106
    sample.gt_rasters = {"map": BEVRaster(torch.ones(len(classes), *grid.shape, dtype=torch.uint8), classes, grid)}
    return sample


@pytest.mark.parametrize(
    ("sample", "name", "said"),
    [
        (raster_sample(SQUARE), "map", "raster 'map': lies on .*shape=(8, 8).* the head on .*shape=(8, 12).*same grid"),
        (raster_sample(), "vehicle", "raster 'vehicle': not there: add the transform .*the samples have ['map']"),
        (BEVDataSample(), "map", "raster 'map': not there: add the transform .*the samples have none"),
        (raster_sample(classes=("a", "b")), "map", "has layers ['a', 'b'], the head ['drivable_area', 'divider']"),
    ],
    ids=["grid", "name", "none", "layers"],
)
def test_target_rasters_that_do_not_fit(sample, name, said):
    pattern = "".join("\\" + c if c in "()[]" else c for c in said)
    with pytest.raises(InputError, match=pattern) as caught:
        target_raster([raster_sample(), sample] if name == "map" else [sample], name, LAYERS, BEV_GRID)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (("forward", "loss"), "lacks predict(); a head implements forward(), loss() and predict()"),
        ((), "lacks forward() and loss() and predict(); a head implements forward(), loss() and predict()"),
        (("encode", "loss", "predict"), "lacks describe(); a head on boxes implements encode(), describe(), loss()"),
    ],
)
def test_a_head_that_lacks_a_method(methods, said):
    base = BoxHead if "encode" in methods else BEVHead
    incomplete = type("Incomplete", (base,), {name: lambda *arguments: {} for name in methods})
    with pytest.raises(TypeError) as caught:
        incomplete(CHANNELS, BEV_GRID)
    assert str(caught.value).startswith(f"Incomplete {said}")

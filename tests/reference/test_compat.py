"""The ``compat`` entry of a config: which parts it puts in, and that it leaves everything else alone."""

import copy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bevstack.engine.config import check_components, load_config
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.reference.compat import PRESETS, CompatSwitches, apply_compat, compat_switches
from bevstack.registry import MODELS, TRANSFORMS
from bevstack.structures import BEVFeatures

TINY = Path(__file__).resolve().parents[2] / "configs" / "bevformer" / "bevformer_tiny.py"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@pytest.fixture(scope="module")
def plain():
    return load_config(TINY)


def test_everything_is_off_by_default(plain):
    assert not any(getattr(CompatSwitches(), name) for name in CompatSwitches.__dataclass_fields__)
    text = plain.pretty_text
    for name in ("Reference", "OldBoxes", "PaddingSees", "can_bus_form"):
        assert name not in text
    assert apply_compat(copy.deepcopy(plain)).pretty_text == text


def test_the_preset_sets_every_switch(plain):
    assert all(bool(getattr(PRESETS["bevformer_v1"], name)) for name in CompatSwitches.__dataclass_fields__)
    cfg = load_config(TINY, ["compat=bevformer_v1"])
    assert dict(cfg.model.alignment) == {
        "type": "bevstack.ReferenceShiftAlignment",
        "rotate_center": (100.0, 100.0),
        "interpolation": "nearest",
        "alias_shift": True,
        "motion": "can_bus",
    }
    assert cfg.model.encoder.type == "bevstack.PaddingSeesEncoder"
    assert cfg.model.heads.detection.type == "bevstack.OldBoxesDetectionHead"
    for loader in LOADERS:
        form = cfg[loader].dataset.can_bus_form
        assert form.type == "bevstack.ReferenceCanBus" and all(value for value in form.values())
    assert cfg.model.heads.detection.criterion.unknown_targets == "row"
    assert cfg.train_dataloader.dataset.pipeline[0] == {"type": "bevstack.ZeroUnknownVelocity"}
    assert cfg.test_dataloader.dataset.pipeline == plain.test_dataloader.dataset.pipeline
    # and nothing else
    cfg.train_dataloader.dataset.pipeline = cfg.train_dataloader.dataset.pipeline[1:]
    cfg.model.heads.detection.criterion.pop("unknown_targets")
    for part in (cfg, plain := copy.deepcopy(plain)):
        part.model.pop("alignment", None)
        part.model.encoder.type = part.model.heads.detection.type = "x"
        part.pop("compat", None)
        for loader in LOADERS:
            part[loader].dataset.pop("can_bus_form", None)
    assert cfg.pretty_text == plain.pretty_text


@pytest.mark.parametrize("switch", [name for name in CompatSwitches.__dataclass_fields__ if name != "ego_pose"])
def test_one_switch_alone_changes_one_part(plain, switch):
    cfg = copy.deepcopy(plain)
    apply_compat(cfg, {switch: (100, 100) if switch == "rotate_center" else True})
    changed = {
        "alignment": "alignment" in cfg.model,
        "encoder": cfg.model.encoder.type != plain.model.encoder.type,
        "head": cfg.model.heads.detection.type != plain.model.heads.detection.type,
        "can_bus": "can_bus_form" in cfg.test_dataloader.dataset,
        "training data": cfg.train_dataloader.dataset.pipeline != plain.train_dataloader.dataset.pipeline,
    }
    part = {
        "alias_shift": "alignment",
        "rotate_center": "alignment",
        "nearest_rotation": "alignment",
        "visible_padding": "encoder",
        "old_boxes": "head",
        "zero_unknown_velocity": "training data",
    }.get(switch, "can_bus")
    assert [name for name, value in changed.items() if value] == [part]


@pytest.mark.parametrize("wrap", ["RepeatDataset", "CBGSDataset", "ConcatDataset"])
def test_wrapped_datasets_are_changed_inside(plain, wrap):
    # Expected: what is done to a dataset alone is done to each that is wrapped, and the wrapper stays as it was.
    alone = apply_compat(copy.deepcopy(plain), "bevformer_v1").train_dataloader.dataset
    cfg = copy.deepcopy(plain)
    inner = cfg.train_dataloader.dataset
    wrapped = dict(datasets=[inner, dict(type="RepeatDataset", times=2, dataset=copy.deepcopy(inner))])
    cfg.train_dataloader.dataset = dict(type=wrap, **(wrapped if wrap == "ConcatDataset" else dict(dataset=inner)))
    changed = apply_compat(cfg, "bevformer_v1").train_dataloader.dataset
    assert set(changed) == {"type", "datasets" if wrap == "ConcatDataset" else "dataset"}
    parts = [changed.dataset] if wrap != "ConcatDataset" else [changed.datasets[0], changed.datasets[1].dataset]
    assert all(dict(part) == dict(alone) for part in parts)


def test_the_published_model_builds_and_applying_twice_changes_nothing(plain):
    from mmengine.registry import init_default_scope

    from bevstack.reference.parts import OldBoxesDetectionHead, PaddingSeesEncoder, ReferenceShiftAlignment
    from bevstack.registry import MODELS, TASK_UTILS

    cfg = apply_compat(copy.deepcopy(plain), "bevformer_v1")
    once = cfg.pretty_text
    assert apply_compat(cfg, "bevformer_v1").pretty_text == once
    init_default_scope("bevstack")
    model = MODELS.build(cfg.model)
    assert isinstance(model.encoder, PaddingSeesEncoder)
    assert isinstance(model.alignment, ReferenceShiftAlignment)
    assert isinstance(model.heads["detection"], OldBoxesDetectionHead)
    assert TASK_UTILS.build(cfg.test_dataloader.dataset.can_bus_form).quaternion_w


@pytest.mark.parametrize(
    ("compat", "named"),
    [
        ("bevformer_v9", "bevformer_v9"),
        ({"alias": True}, "alias_shift"),
        ({"alias_shift": 1}, "True or False"),
        ({"rotate_center": 100}, "rotate_center"),
        ({"rotate_center": (1, 2, 3)}, "rotate_center"),
        ({"ego_pose": True}, "absolute_yaw"),
    ],
)
def test_a_wrong_entry_is_one_line(compat, named):
    with pytest.raises(InputError, match=named) as error:
        compat_switches(compat)
    assert "\n" not in str(error.value)


def test_datasets_inside_of_wrappers_are_changed(plain):
    # Expected: as without RepeatDataset, ConcatDataset and CBGSDataset around it, which take neither of the two keys.
    cfg, expected = copy.deepcopy(plain), apply_compat(copy.deepcopy(plain), "bevformer_v1")
    inner = cfg.train_dataloader.dataset
    twice = dict(type="RepeatDataset", times=2, dataset=copy.deepcopy(inner))
    pair = dict(type="ConcatDataset", datasets=[inner, twice])
    cfg.train_dataloader.dataset = dict(type="CBGSDataset", dataset=pair)
    apply_compat(apply_compat(cfg, "bevformer_v1"), "bevformer_v1")
    check_components(cfg)
    first, second = cfg.train_dataloader.dataset.dataset.datasets
    for found in (first, second.dataset):
        assert found == expected.train_dataloader.dataset


def test_a_model_without_the_part_is_an_error(plain):
    cfg = copy.deepcopy(plain)
    cfg.model.heads.detection.type = "DenseDetectionHead"
    with pytest.raises(InputError, match="QueryDetectionHead"):
        apply_compat(cfg, {"old_boxes": True})


@pytest.mark.parametrize(("compat", "taught"), [(None, 8), ("zero_unknown_velocity", 10)])
def test_a_box_of_unknown_velocity_is_learned(plain, compat, taught):
    # A set of single key frames knows no velocity. Expected: as published, all ten values of a box are learned, the
    # velocity as 0; by default the eight known ones. (The published head alone, given NaN, learns nothing of the box.)
    cfg = copy.deepcopy(plain)
    if compat:
        apply_compat(cfg, {compat: True})
    boxes = np.array([[5.0, 10, -1, 4, 2, 1.5, 0.3, np.nan, np.nan], [-8, 3, -1, 4, 2, 1.5, 0.3, 1, 2]], np.float32)
    results = {"boxes": boxes.copy()}
    for step in cfg.train_dataloader.dataset.pipeline:
        if step["type"] == "bevstack.ZeroUnknownVelocity":
            results = TRANSFORMS.build(step)(results)
    np.testing.assert_array_equal(results["boxes"][1], boxes[1])
    torch.manual_seed(0)
    settings = dict(cfg.model.heads.detection, num_queries=20, type="bevstack.QueryDetectionHead")
    head = MODELS.build(settings).eval()
    grid = BEVGrid.build(cfg.model.encoder.grid)
    raw = head(BEVFeatures(torch.randn(1, settings["in_channels"], *grid.shape), grid))
    losses = head.loss_of_boxes(raw, [torch.from_numpy(results["boxes"])], [torch.tensor([0, 0])])
    assert int(losses["unknown_target_values"]) == 10 - taught
    query = (head.match(raw, [torch.from_numpy(boxes)], [torch.tensor([0, 0])])[0, -1] == 0).nonzero().item()
    (of_query,) = torch.autograd.grad(losses["loss_bbox"], raw["boxes"])
    assert int((of_query[-1, 0, query] != 0).sum()) == taught


def test_importing_the_package_brings_no_compatibility_in():
    code = (
        "import sys, bevstack.models.bev, bevstack.datasets.ego_state;"
        "print(sorted(m for m in sys.modules if m.startswith('bevstack.interop.reference')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

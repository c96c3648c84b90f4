"""Lists of classes and ranges that stand twice in a config, compared once both are built."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from bevstack.engine.config import building, load_config
from bevstack.engine.hooks import LoadPartsHook
from bevstack.engine.label_checks import (
    check_labels,
    check_trained_cameras,
    check_trained_labels,
    require_same_classes,
)
from bevstack.engine.runner import BEVRunner
from bevstack.errors import InputError
from bevstack.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)
HEATMAP = "heads.detection.heatmap.1"  # the one layer of the head whose shape goes by the number of classes
DEMO, TINY = "demo.py", "bevformer/bevformer_tiny.py"
FAR = "{'shape':(1,1),'x_range_m':(-102.4,102.4),'y_range_m':(-102.4,102.4)}"


def config(name: str, *options: str):
    init_default_scope("bevstack")
    return load_config(ROOT / "configs" / name, options)


def heads_of(cfg) -> nn.Module:
    """The heads alone, as the model would hold them."""
    model = nn.Module()
    model.heads = nn.ModuleDict({name: MODELS.build(head) for name, head in cfg.model.heads.items()})
    return model


def labelled(*classes: str) -> SimpleNamespace:
    return SimpleNamespace(metainfo={"classes": classes})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda classes: classes[::-1], "same classes in another order"),
        (lambda classes: classes[:2], "other classes"),
        (lambda classes: (*classes, "animal"), "other classes"),
    ],
)
def test_classes_of_dataset_and_head_are_the_same(change, message) -> None:
    """Reordered, fewer, more: refused with both lists."""
    cfg = config(DEMO)
    classes = tuple(cfg.model.heads.detection.classes)
    check_labels(cfg, heads_of(cfg), labelled(*classes), "train")
    with pytest.raises(InputError, match=message) as raised:
        check_labels(cfg, heads_of(cfg), labelled(*change(classes)), "train")
    line = str(raised.value)
    assert "train_dataloader.dataset.classes: " in line and "model.heads.detection.classes is" in line
    assert str(list(change(classes))) in line and str(list(classes)) in line


def test_weights_of_another_list_are_refused() -> None:
    """What tools/test.py, tools/visualize.py and load_model ask of a checkpoint; one that says nothing is taken."""
    cfg = config(DEMO)
    model, classes = heads_of(cfg), tuple(cfg.model.heads.detection.classes)
    for meta in ({}, {"dataset_meta": None}, {"dataset_meta": {"classes": list(classes)}}):
        check_trained_labels(model, meta, "a.pth")
    with pytest.raises(InputError, match="a.pth: dataset_meta.classes: .* the same classes in another order"):
        check_trained_labels(model, {"dataset_meta": {"classes": classes[::-1]}}, "a.pth")


def test_a_start_from_heads_of_another_list_is_refused() -> None:
    """``load_from`` with the classes in another order fits in every shape; a head that starts new in part may be so."""
    cfg = config(DEMO)
    runner = object.__new__(BEVRunner)
    runner.model, runner.cfg, runner.logger = heads_of(cfg), cfg, logging.getLogger("test")
    runner._hooks = []
    content = {"state_dict": runner.model.state_dict()}
    without = {name: value for name, value in content["state_dict"].items() if not name.startswith("heads.detection.")}
    reordered = {"dataset_meta": {"classes": tuple(cfg.model.heads.detection.classes)[::-1]}}
    runner.take_weights({"state_dict": without, "meta": reordered}, "a.pth", strict=False)  # the head starts new
    for order, new, refused in ((1, None, False), (-1, None, True), (-1, "heads.map", True), (-1, HEATMAP, False)):
        labels = tuple(cfg.model.heads.detection.classes)[::order]
        cfg.new_parts = new
        message = "a.pth: dataset_meta.classes: .* another order; .* new_parts=heads.detection"
        with pytest.raises(InputError, match=message) if refused else nullcontext():
            runner.take_weights({**content, "meta": {"dataset_meta": {"classes": labels}}}, "a.pth", strict=False)


def test_parts_of_heads_of_another_list_are_refused(tmp_path) -> None:
    """``LoadPartsHook`` with a whole head; its layers that know no class may come from anywhere."""
    cfg = config(DEMO)
    model = heads_of(cfg)
    labels = list(cfg.model.heads.detection.classes)[::-1]
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": labels}}}, tmp_path / "a.pth")
    runner = SimpleNamespace(module=model, iter=0, logger=logging.getLogger("test"))
    LoadPartsHook(tmp_path / "a.pth", ("heads.map", "heads.detection.shared")).before_train(runner)
    for part in ("heads.detection", "heads"):
        with pytest.raises(InputError, match="dataset_meta.classes: .* another order; .* know no class"):
            LoadPartsHook(tmp_path / "a.pth", (part,)).before_train(runner)


def test_cameras_stand_where_they_stood_in_training() -> None:
    """Fewer are the first ones, other names stand anywhere; the same ones elsewhere are refused with both orders."""
    model = SimpleNamespace(encoder=SimpleNamespace(num_cameras=3))
    meta = {"dataset_meta": {"cameras": ("FRONT", "LEFT", "RIGHT")}}
    for cameras in (("FRONT", "LEFT", "RIGHT"), ("FRONT", "LEFT"), ("a", "b", "c", "d"), ("a", "LEFT"), ()):
        check_trained_cameras(model, meta, cameras, "a.pth")
    check_trained_cameras(model, {}, ("LEFT",), "a.pth")
    check_trained_cameras(SimpleNamespace(encoder=None), meta, ("LEFT",), "a.pth")
    for cameras in (("LEFT",), ("FRONT", "RIGHT", "LEFT"), ("a", "FRONT")):
        with pytest.raises(InputError, match=r"a.pth: cameras: \['FRONT', 'LEFT', 'RIGHT'\] in training, but \["):
            check_trained_cameras(model, meta, cameras, "a.pth")


def test_layers_of_rasters_are_not_classes_of_objects() -> None:
    """Map heads name layers; a head of names all its own is left alone."""
    cfg = config("bevformer/bevformer_base_seg.py")
    check_labels(cfg, heads_of(cfg), labelled("vehicle", "car"), "train")
    require_same_classes(("door", "window"), "model.heads.own.classes", ("car",), "file", "field")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (TINY, [f"model.heads.detection.grid={FAR}"], r"post_center_range_m: x ends at .*61.2\) m.*102.4\) m"),
        (DEMO, [f"train_dataloader.dataset.pipeline.4.grid={FAR}"], r"pipeline.4.grid: x range .*102.4.*51.2"),
    ],
)
def test_ranges_that_cut_boxes_off_are_refused(name, options, message) -> None:
    """A grid beyond the published box limits, by the head itself, and objects shown beyond the head's grid."""
    cfg = config(name, *options)
    with pytest.raises(InputError, match=message), building(cfg):
        check_labels(cfg, heads_of(cfg), labelled(*cfg.model.heads.detection.classes), "train")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_configs_agree_with_themselves(path, monkeypatch, tmp_path) -> None:
    """Every config's heads and datasets, each with the classes that it names."""
    monkeypatch.setenv("BEVSTACK_REALDATA", str(tmp_path))
    cfg = config(str(path.relative_to(ROOT / "configs")))
    model = MODELS.build(cfg.model)
    for part in ("train", "test"):
        check_labels(cfg, model, labelled(*cfg[f"{part}_dataloader"].dataset.classes), part)

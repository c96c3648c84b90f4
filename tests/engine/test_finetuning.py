"""Starting from a model of other classes, rig or extent: rows go by the names of their classes, the rest is said."""

from __future__ import annotations

import copy

import pytest
import torch

from bevstack.engine.finetuning import fitted_weights
from bevstack.engine.models import build_model
from bevstack.engine.stored_config import config_text, plain_config
from tests.engine.front_door import CLASSES, GRID, small_config, trained

META = {"config": plain_config(small_config())}


@pytest.fixture(scope="module")
def weights():
    """Of a model of cars and pedestrians, roads and grass."""
    return trained(small_config()).state_dict()


def other_model(**heads):
    """The same model with other values of its heads, newly drawn."""
    cfg = small_config()
    for name, changes in heads.items():
        cfg.model.heads[name].update(changes)
    torch.manual_seed(5)
    return build_model(cfg, "cpu")


def test_the_same_model_takes_everything(weights):
    fitted = fitted_weights(weights, other_model(), META)
    assert fitted.line() == f"{len(weights)} weights taken"
    assert all(torch.equal(value, weights[name]) for name, value in fitted.weights.items())


@pytest.mark.parametrize("meta", [META, {"cfg": config_text(small_config())}], ids=["as data", "as text"])
def test_rows_follow_the_names_of_their_classes(weights, meta):
    # Expected: by hand. A head of (bus, pedestrian, car) takes rows 1 and 0 of the file for its rows 1 and 2, and
    # keeps its own row 0; a map of (grass,) takes row 1. All other weights are the file's.
    model = other_model(boxes=dict(classes=("bus", "pedestrian", "car")), map=dict(classes=("grass",)))
    own = copy.deepcopy(model.state_dict())
    fitted = fitted_weights(weights, model, meta)
    assert fitted.mapped == {"heads.boxes": ["pedestrian", "car"], "heads.map": ["grass"]}
    for kind in ("weight", "bias"):
        found, source = fitted.weights[f"heads.boxes.heatmap.1.{kind}"], weights[f"heads.boxes.heatmap.1.{kind}"]
        assert torch.equal(found, torch.stack([own[f"heads.boxes.heatmap.1.{kind}"][0], source[1], source[0]]))
        name = f"heads.map.classifier.0.{kind}"
        assert torch.equal(fitted.weights[name], weights[name][1:])
    changed = ("heads.boxes.heatmap.1.", "heads.map.classifier.0.")
    rest = [name for name in weights if not name.startswith(changed)]
    assert rest and all(torch.equal(fitted.weights[name], weights[name]) for name in rest)
    assert fitted.new == fitted.left == []
    assert fitted.line().endswith("taken; heads.boxes: rows of pedestrian, car; heads.map: rows of grass")


def test_rows_of_finer_cells_stay_together():
    # Expected: with upscale=2 a class has four rows (sub-pixel convolution); they move as a block.
    cfg = small_config()
    cfg.model.heads.boxes.upscale = 2
    source = trained(cfg).state_dict()
    turned = copy.deepcopy(cfg)
    turned.model.heads.boxes.classes = CLASSES[::-1]
    fitted = fitted_weights(source, build_model(turned, "cpu"), {"config": plain_config(cfg)})
    rows = source["heads.boxes.heatmap.1.weight"]
    assert len(rows) == 8
    assert torch.equal(fitted.weights["heads.boxes.heatmap.1.weight"], torch.cat([rows[4:], rows[:4]]))


def test_common_weights_start_from_a_file_without_them():
    # Expected: what the file's sub-pixel convolution said, so nothing in common at first; classes move in both layers.
    cfg = small_config()
    cfg.model.heads.boxes.upscale = 2
    source = trained(cfg)
    with_common = copy.deepcopy(cfg)
    with_common.model.heads.boxes.common = True
    model = build_model(with_common, "cpu")
    fitted = fitted_weights(source.state_dict(), model, {"config": plain_config(cfg)})
    model.load_state_dict(fitted.weights, strict=False)
    features = torch.randn(1, model.heads["boxes"].heatmap[1].in_channels, 4, 5)
    with torch.no_grad():
        want = source.heads["boxes"].heatmap[1:](features)
        assert torch.equal(model.heads["boxes"].heatmap[1](features), want)
    turned = copy.deepcopy(with_common)
    turned.model.heads.boxes.classes = CLASSES[::-1]
    weights = model.state_dict() | {"heads.boxes.heatmap.1.common.bias": torch.arange(2.0)}
    fitted = fitted_weights(weights, build_model(turned, "cpu"), {"config": plain_config(with_common)})
    assert fitted.weights["heads.boxes.heatmap.1.common.bias"].tolist() == [1.0, 0.0]


def test_another_extent_and_other_heads_start_new(weights):
    # Expected: queries of another grid, a head that the file lacks; what the model lacks is left out.
    cfg = small_config()
    cfg.model.encoder.grid = {**GRID, "shape": (6, 10)}
    cfg.model.heads.lanes = {**cfg.model.heads.map, "raster": "lanes"}
    cfg.model.heads.pop("map")
    fitted = fitted_weights(weights, build_model(cfg, "cpu"), META)
    assert {name.split(".")[0] for name in fitted.new} == {"encoder", "heads"}
    assert "encoder.queries (1)" in fitted.line() and "heads.lanes.classifier (2)" in fitted.line()
    assert "left out: heads.map." in fitted.line()
    assert not any(name.startswith("heads.lanes") or name == "encoder.queries.weight" for name in fitted.weights)


def test_a_head_that_cannot_be_sorted_starts_new(weights):
    # Expected: without class_layers, equal shapes and other classes, nothing of the head is taken.
    model = other_model(boxes=dict(classes=("van", "child")))
    type(model.heads["boxes"]).class_layers, kept = (), type(model.heads["boxes"]).class_layers
    try:
        fitted = fitted_weights(weights, model, META)
    finally:
        type(model.heads["boxes"]).class_layers = kept
    assert fitted.renewed == ["heads.boxes"] and "heads.boxes: other classes" in fitted.line()
    assert not any(name.startswith("heads.boxes.") for name in fitted.weights)
    assert any(name.startswith("heads.map.") for name in fitted.weights)


def test_a_file_that_says_no_classes_is_taken_by_shapes(weights):
    # Expected: heads of other numbers of classes lose their last layer alone.
    model = other_model(boxes=dict(classes=("bus", "pedestrian", "car")))
    fitted = fitted_weights(weights, model, {})
    assert fitted.new == ["heads.boxes.heatmap.1.weight", "heads.boxes.heatmap.1.bias"] and fitted.mapped == {}

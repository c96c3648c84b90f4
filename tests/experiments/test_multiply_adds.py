"""What is counted is what a step and the heads run."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.registry import init_default_scope

from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.experiments.multiply_adds import (
    BOXES,
    SAMPLING,
    count_multiply_adds,
    count_operators,
    frame_of,
    full_memory,
    some_boxes,
)
from tests.integration.conftest import REPOSITORY

SIZE_PX = (96, 256)


@pytest.fixture(scope="module")
def model():
    init_default_scope("bevstack")
    return build_model(load_config(REPOSITORY / "configs" / "multitask" / "all_heads.py"), "cpu").to("meta").eval()


def test_every_part_that_a_test_runs_is_counted(model):
    # Expected: the names of the model's own parts; a head on images counts where it predicts.
    counts = count_multiply_adds(model, SIZE_PX)
    parts = {"backbone", "neck", "encoder", *(f"heads.{name}" for name in model.heads)}
    parts |= {f"image_heads.{name}" for name, head in model.image_heads.items() if head.predicts}
    assert parts <= set(counts) and all(counts[part] > 0 for part in parts)
    assert {"heads.behaviour", "heads.appearance"} <= parts, "those that describe boxes are among them"


def test_modules_and_operators_agree_on_the_heads(model):
    # Expected: torch's own counter of operators, which knows nothing of modules, for heads made of convolutions and
    # linear layers alone.
    counts = count_multiply_adds(model, SIZE_PX)
    with torch.no_grad():
        bev, _ = model.step(frame_of(model, SIZE_PX), full_memory(model))
    for name in ("detection", "behaviour", "appearance"):
        head = model.heads[name]
        inputs = (bev, [some_boxes()]) if name != "detection" else (bev,)
        assert counts[f"heads.{name}"] == pytest.approx(count_operators(head, *inputs), rel=0.02), name


def test_heads_on_boxes_grow_with_the_boxes(model, monkeypatch):
    # Expected: what is done a box is done for each; what is done for B_t once is not.
    first = count_multiply_adds(model, SIZE_PX)
    monkeypatch.setattr("bevstack.experiments.multiply_adds.BOXES", 2 * BOXES)
    second = count_multiply_adds(model, SIZE_PX)
    monkeypatch.setattr("bevstack.experiments.multiply_adds.BOXES", 3 * BOXES)
    third = count_multiply_adds(model, SIZE_PX)
    for name in ("heads.behaviour", "heads.appearance"):
        assert third[name] - second[name] == pytest.approx(second[name] - first[name])
        assert second[name] > first[name]
    assert third["heads.detection"] == first["heads.detection"]


def test_the_demos_step_is_what_its_page_says():
    # Expected: the column "now" of docs/attention_and_convolution.md, in millions.
    page = (REPOSITORY / "docs" / "attention_and_convolution.md").read_text()
    table = page.partition("### The demo's step")[2].partition("The backbone's are")[0]
    rows = re.findall(r"^\| ([a-z_.]+) \| [\d,.]+ \| ([\d,.]+) \|$", table, re.MULTILINE)
    init_default_scope("bevstack")
    demo = build_model(load_config(REPOSITORY / "configs" / "demo.py"), "cpu").to("meta").eval()
    counts = count_multiply_adds(demo, (160, 448))
    assert {name: float(number.replace(",", "")) for name, number in rows} == {
        name: round(count / 1e6, 1) for name, count in counts.items() if name != SAMPLING
    }

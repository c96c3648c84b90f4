"""Every lever of configs/study trains for two steps on the tiny set, and says what it changes in the demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bevstack.engine.config import load_config
from bevstack.engine.train import main
from tests.integration.conftest import REPOSITORY, shrunken

STUDY = REPOSITORY / "configs" / "study"
PARTS = (
    "model",
    "train_dataloader",
    "test_dataloader",
    "test_evaluator",
    "optim_wrapper",
    "train_cfg",
    "custom_hooks",
)
LEVERS = sorted(path.stem for path in STUDY.glob("*.py") if path.stem != "recipe")


def differences(first: object, second: object, place: str = "") -> set[str]:
    """Places where two trees of dicts and lists differ."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = first.keys() | second.keys()
        return set().union(*(differences(first.get(k), second.get(k), f"{place}.{k}" if place else k) for k in keys))
    return set() if first == second else {place}


def test_every_lever_is_compared() -> None:
    """Expected: the recipe's variants are the folder's configs, each once, in both halves."""
    for section in load_config(STUDY / "recipe.py").comparison.sections:
        named = sorted(entry.config for entry in section.variants if entry.get("config"))
        assert named == [f"{name}.py" for name in LEVERS]


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_changes_the_demo_and_trains(name, tiny, tmp_path) -> None:
    """Expected: few places differ from the demo, none of them in what the demo is scored by but its images; two steps
    give finite losses, and weights that the demo has not where the model is another one."""
    whole, demo = load_config(STUDY / f"{name}.py"), load_config(REPOSITORY / "configs" / "demo.py")
    first, second = ({part: tree[part] for part in PARTS} for tree in (c._cfg_dict.to_dict() for c in (whole, demo)))
    changed = differences(first, second)
    assert 1 <= len(changed) <= 7, changed
    assert name in ("wide_images", "horizon_views") or not any(place.startswith("test_") for place in changed), changed
    cfg = shrunken(whole, tiny.root)
    cfg.custom_hooks = [dict(type="BudgetSchedule", max_steps=2), cfg.custom_hooks[-1]]
    path = tmp_path / "lever.py"
    cfg.dump(path)
    assert main([str(path), "--work-dir", str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "train_summary.json").read_text())
    assert summary["steps"] == 2
    state = torch.load(Path(summary["checkpoint"]), weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())

"""Every config in configs/ is read, checked and its model built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from bevstack.engine.config import check_components, components, load_config
from bevstack.registry import MODELS, OPTIM_WRAPPERS

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)


def test_there_are_configs() -> None:
    assert ROOT / "configs" / "demo.py" in CONFIGS


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def cfg(request, tmp_path_factory):
    """One config after another; tests leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEVSTACK_REALDATA", str(tmp_path_factory.mktemp("realdata")))
        patch.chdir(ROOT)
        init_default_scope("bevstack")
        yield load_config(request.param)


@pytest.fixture(scope="module")
def model(cfg):
    """Its model, built once."""
    return MODELS.build(cfg.model)


def test_names_and_keys_are_known(cfg) -> None:
    """Every ``type`` is registered and every key beside it is a parameter of it."""
    check_components(cfg)
    assert cfg.default_scope == "bevstack"


def test_what_is_written_is_the_config(cfg) -> None:
    """The text that a run keeps beside its checkpoints reads as the config that it came from."""
    assert Config.fromstring(cfg.pretty_text, ".py").to_dict() == cfg.to_dict()


def test_model_is_built(cfg, model) -> None:
    """The model and its optimizer; heads and parameters are there."""
    from mmengine.optim import build_optim_wrapper

    assert sum(parameter.numel() for parameter in model.parameters()) > 1000
    if cfg.get("optim_wrapper"):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper.copy())
        assert isinstance(wrapper, OPTIM_WRAPPERS.get(cfg.optim_wrapper["type"]))


def test_no_weights_are_fetched(cfg) -> None:
    """A config that names a download cannot be built without a network."""
    for place, node in components(cfg._cfg_dict.to_dict()):
        initial = node.get("init_cfg")
        assert "://" not in str(initial.get("checkpoint") if isinstance(initial, dict) else initial), place
        assert node.get("pretrained") is not True, place


def test_heads_have_losses(model) -> None:
    """Built heads say what they need, and their grids have a cell size (metres) that a BEV can have."""
    for name, head in model.heads.items():
        cells = torch.tensor(head.grid.cell_m)
        assert (cells > 0.05).all() and (cells < 5).all(), name
        assert isinstance(head.requires, tuple)

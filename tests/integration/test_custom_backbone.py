"""``docs/custom_backbone.md`` does what it says: its files are taken out, installed, and its commands run."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from tests.integration.conftest import made_once
from tests.integration.pages import (
    TOOLS,
    Page,
    assert_nothing_is_left,
    assert_one_line,
    follow,
    forget,
    logs_of,
    run,
)

PAGE = Page("custom_backbone.md")


@pytest.fixture
def plainnet(tiny, monkeypatch):
    """The page's package, installed and importable as long as the test runs, and its configuration."""
    made_once(tiny.folder, "plainnet", lambda: PAGE.install(tiny.folder, "plainnet"))
    monkeypatch.syspath_prepend(str(tiny.folder / "installed"))
    forget("plainnet")
    yield tiny.config.with_name("demo_plainnet.py")
    forget("plainnet")


def test_the_page_is_complete():
    configs = {"configs/demo_plainnet.py", "configs/demo_plainnet_direct.py"}
    assert set(PAGE.files) == {"plainnet/pyproject.toml", "plainnet/plainnet.py"} | configs
    assert [command[0] for command in PAGE.commands] == list(TOOLS)


def test_it_trains_is_scored_and_drawn(plainnet, tmp_path):
    follow(PAGE, tmp_path, plainnet)
    logs = logs_of(tmp_path)
    assert logs and np.isfinite([log["loss"] for log in logs]).all()
    assert "NDS" in json.loads((tmp_path / "metrics.json").read_text())
    assert list((tmp_path / "vis").glob("*/*.png"))


@pytest.mark.parametrize("name", ["demo_plainnet.py", "demo_plainnet_direct.py"])
def test_both_configs_build_it(plainnet, name):
    # Expected: channels 64 and 96 at strides 8 and 16, which the neck has taken over.
    from mmengine.registry import init_default_scope

    from bevstack.engine.config import check_components, load_config
    from bevstack.registry import MODELS

    cfg = load_config(plainnet.with_name(name))
    check_components(cfg)
    init_default_scope("bevstack")
    model = MODELS.build(cfg.model)
    assert type(model.backbone).__module__ == "plainnet"
    assert (model.backbone.channels, model.backbone.strides) == ((64, 96), (8, 16))
    assert [lateral.in_channels for lateral in model.neck.lateral] == [64, 96]


def wrong_order(monkeypatch) -> None:
    import plainnet

    build = plainnet.PlainNet.__init__

    def turned(self, widths=(16, 32, 64, 96), blocks=1, out_indices=(2, 3), init_cfg=None) -> None:
        build(self, widths, blocks, out_indices, init_cfg)
        self.channels = self.channels[::-1]

    monkeypatch.setattr(plainnet.PlainNet, "__init__", turned)


def tokens(monkeypatch) -> None:
    import plainnet

    build, forward = plainnet.PlainNet.__init__, plainnet.PlainNet.forward

    def silent(self, widths=(16, 32, 64, 96), blocks=1, out_indices=(2, 3), init_cfg=None) -> None:
        build(self, widths, blocks, out_indices, init_cfg)
        del self.channels, self.strides

    monkeypatch.setattr(plainnet.PlainNet, "__init__", silent)
    monkeypatch.setattr(
        plainnet.PlainNet, "forward", lambda self, images: [m.flatten(2).mT.unsqueeze(1) for m in forward(self, images)]
    )


# The page's mistakes: options of the command line, or a change of the code.
HOW: dict[str, list[str] | Callable] = {
    '`type="PlainNett"`': ["model.backbone.type=PlainNett"],
    "`width=(8, 16)`": ["model.backbone.width=(8,16)"],
    "a neck with `in_channels=(16, 32)`": ["model.neck.in_channels=(16,32)"],
    "`channels` in the wrong order": wrong_order,
    "no `channels`, and tokens instead of maps": tokens,
    "two levels out of the neck, one in the encoder": ["model.neck.out_levels=(0,1)"],
}


def test_every_mistake_of_the_page_is_made_here():
    assert {mistake for mistake, _ in PAGE.mistakes} == set(HOW)


@pytest.mark.parametrize(("mistake", "said"), PAGE.mistakes, ids=[mistake for mistake, _ in PAGE.mistakes])
def test_mistakes_give_one_line(plainnet, tmp_path, monkeypatch, capfd, mistake, said):
    # Expected: the page's line on stderr, alone; exit code 2; nothing left behind.
    how = HOW[mistake]
    options = how if isinstance(how, list) else []
    if not options:
        from bevstack.engine.config import load_config

        load_config(plainnet)
        how(monkeypatch)
    # With the wrong order the neck takes the wrong channels; the first image tells.
    arguments = [str(plainnet), "--work-dir", str(tmp_path), "--cfg-options", "default_hooks.logger.interval=1"]
    assert run("tools/train.py", [*arguments, *options]) == 2
    assert_one_line(capfd.readouterr().err, said, plainnet.name)
    assert_nothing_is_left(tmp_path)

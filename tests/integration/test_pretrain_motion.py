"""``tools/pretrain_motion.py``: motion is learned, what was trained before stays, and the files are whole."""

from __future__ import annotations

import re

import pytest
import torch
from mmengine.registry import init_default_scope
from torch.nn import functional as F

from bevstack.engine.config import load_config
from bevstack.errors import InputError
from bevstack.experiments.moving_patches import MovingPatches
from bevstack.experiments.pretrain_motion import MotionReader, evaluate, learn, main, motion_colors, started_model
from bevstack.images import read_image
from bevstack.models.backbones.slowfast import SlowFast
from bevstack.models.backbones.slowfast_swin import SlowFastSwin

SWIN_SIZES = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4, beta=1 / 4, out_indices=(0, 1))
SWIN = dict(type="SlowFastSwin", **SWIN_SIZES)


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
    """The tiny demo with a single-frame Swin as its backbone; its path."""
    cfg = load_config(tiny.config)
    cfg.model.backbone = dict(fusion="none", **SWIN)
    cfg.model.neck = dict(type="TopDownNeck", out_channels=cfg.channels, out_levels=(0,))
    path = tmp_path_factory.mktemp("motion") / "video.py"
    cfg.dump(path)
    return path


@pytest.fixture(scope="module")
def start(config):
    """Weights of the single-frame model, never trained."""
    from bevstack.registry import MODELS

    init_default_scope("bevstack")
    torch.manual_seed(3)
    model = MODELS.build(load_config(config).model)
    path = config.with_name("start.pth")
    torch.save({"state_dict": model.state_dict(), "meta": {}}, path)
    return path


@pytest.mark.parametrize("fusion", ["serial", "cross"])
def test_what_was_trained_stays_and_the_rest_learns(config, start, fusion, capsys):
    # Expected: the start's weights bit by bit, others than a new model's in the fast path, a picture of six clips of
    # five panels, and an error that is told beside that of saying that nothing moves.
    out = config.with_name(f"{fusion}.pth")
    options = [f"model.backbone.fusion={fusion}", f"load_from={start}"]
    arguments = ["--out", str(out), "--steps", "20", "--batch-size", "2", "--samples", "2", "--patch-px", "32"]
    assert main([str(config), *arguments, "--cfg-options", *options]) == 0
    weights, before = (torch.load(path, weights_only=True)["state_dict"] for path in (out, start))
    assert all(torch.equal(weights[name], value) for name, value in before.items())
    new = [name for name in weights if name not in before]
    assert new and all(name.startswith("backbone.") for name in new)
    torch.manual_seed(0)  # the command's own seed
    drawn = started_model(load_config(config, options)).state_dict()
    learned = [name for name in new if not torch.equal(weights[name], drawn[name])]
    assert "backbone.laterals.0.weight" in learned and all(weights[name].isfinite().all() for name in new)
    assert read_image(out.with_suffix(".png")).shape == (6 * 32 * 3, 5 * 32 * 3, 3)
    strides = dict(serial=("4", "8"), cross=("8", "16"))[fusion]  # the cross fusion's fast path has half the resolution
    told = r"error of motion [\d.]+ at stride {}, [\d.]+ at stride {} px a frame \(saying".format(*strides)
    assert re.search(told, capsys.readouterr().out)


SMALL = {  # a backbone, and steps that are enough for it with some to spare
    "serial": (lambda: SlowFastSwin("serial", **{**SWIN_SIZES, "embed_dim": 32}), 250),
    "slowfast": (lambda: SlowFast(width=16, layers=(1, 1), beta=1 / 4, out_indices=(1,)), 120),
}


@pytest.mark.parametrize("name", SMALL)
def test_motion_is_learned(name):
    # Expected: on unseen clips of unseen images, clearly better than saying that nothing moves.
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    images = F.interpolate(torch.randn(80, 3, 24, 24, generator=g), size=(96, 96), mode="bicubic")
    options = dict(size_px=32, speed_px=(1.5, 1.5), growth=0.0)
    build, steps = SMALL[name]
    reader = MotionReader(build())
    learn(reader, MovingPatches(images[:60], **options), steps, 16, 8e-3, g)
    clips, motion = MovingPatches(images[60:], **options).draw(64, g)
    _, errors = evaluate(reader, clips, motion)
    assert errors[-1] < 0.8 * motion.norm(dim=1).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "3"), "--steps: 3 must be at least 20"),
        (("--patch-px", "48"), "--patch-px: 48 must be a multiple of 32"),
        (("--patch-px", "96", "--samples", "1"), "--patch-px: 96 is more than the images have, 128x64"),
        (("--out", "/dev/null/x/y.pth"), "--out: cannot be written: Not a directory"),
    ],
)
def test_bad_options_are_refused_before_anything_is_learned(config, tmp_path, options, message):
    fusion = ("--cfg-options", "model.backbone.fusion=serial")
    with pytest.raises(InputError, match=message):
        main([str(config), "--out", str(tmp_path / "x.pth"), *options, *fusion])
    assert not list(tmp_path.glob("*.pth"))


def test_an_image_backbone_is_refused(tiny, tmp_path):
    with pytest.raises(InputError, match=r"model.backbone: TimmBackbone has no sweeps and `laterals`"):
        main([str(tiny.config), "--out", str(tmp_path / "x.pth")])


def test_colours():
    # Expected: no motion is black, to the right is red, and half as fast half as bright.
    motion = torch.tensor([[[0.0, 1.0, 0.5]], [[0.0, 0.0, 0.0]]])
    assert motion_colors(motion)[0].tolist() == [[0, 0, 0], [255, 0, 0], [127, 0, 0]]

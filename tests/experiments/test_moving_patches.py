"""Clips of known motion: that what they show moves as they say."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bevstack.experiments.moving_patches import MovingPatches


def images(count: int = 6, height: int = 96, width: int = 160) -> torch.Tensor:
    rough = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(rough, size=(height, width), mode="bicubic")


def drawn(count: int = 24, **options) -> tuple[torch.Tensor, torch.Tensor]:
    return MovingPatches(images(), **options).draw(count, torch.Generator().manual_seed(1))


def back_by(motion: torch.Tensor, earlier: torch.Tensor) -> torch.Tensor:
    """The earlier frame, looked at where each pixel of the last one was then."""
    size = earlier.shape[-1]
    axis = torch.arange(size) + 0.5
    pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    place = pixels - motion.permute(0, 2, 3, 1)
    return F.grid_sample(earlier, place * 2 / size - 1, align_corners=False, padding_mode="border")


def test_the_frame_before_is_the_last_one_moved_back():
    # Expected: brightness constancy. Smooth images: what bicubic patches of 8 px change within the interpolation.
    clips, motion = drawn(num_frames=7, size_px=64)
    assert clips.shape == (24, 7, 3, 64, 64) and motion.shape == (24, 2, 64, 64)
    inner = (slice(None), slice(None), slice(12, -12), slice(12, -12))
    unmoved = (clips[:, -1] - clips[:, -2])[inner].abs().flatten(1).mean(1)
    moved = (clips[:, -1] - back_by(motion, clips[:, -2]))[inner].abs().flatten(1).median(1).values
    faster = motion.norm(dim=1).flatten(1).median(1).values > 1.0
    assert faster.sum() > 8
    assert (moved[faster] < 0.01).all() and (unmoved[faster] > 0.02).all()


def test_speed_is_constant():
    # Expected: without growth, six times the motion leads to the first frame.
    clips, motion = drawn(num_frames=7, size_px=64, growth=0.0, speed_px=(1.0, 1.0))
    slow = motion.norm(dim=1).flatten(1).amax(1) < 2.0
    difference = clips[:, -1] - back_by(6 * motion, clips[:, 0])
    inner = difference[:, :, 14:-14, 14:-14].abs().flatten(1).median(1).values
    assert slow.sum() > 5 and (inner[slow] < 0.01).all()


def test_two_motions_in_a_clip_and_some_stand_still():
    # Expected: a rectangle and its background, each still in about one clip of five.
    clips, motion = drawn(200, size_px=32, growth=0.0)
    kinds = torch.tensor([len(m.flatten(1).unique(dim=1).T) for m in motion])
    assert set(kinds.tolist()) <= {1, 2} and (kinds == 2).float().mean() > 0.5
    corner = motion[:, :, 0, 0].norm(dim=1)
    assert 0.1 < (corner == 0).float().mean() < 0.3
    assert torch.equal(clips[corner == 0][:, 0, :, 0, 0], clips[corner == 0][:, -1, :, 0, 0])


def test_the_same_seed_draws_the_same():
    (clips, motion), (again, motion_again) = drawn(4), drawn(4)
    assert torch.equal(clips, again) and torch.equal(motion, motion_again)


@pytest.mark.parametrize("shape", [(1, 3, 96, 96), (4, 3, 48, 96), (3, 96, 96)])
def test_too_few_or_small_images_are_refused(shape):
    with pytest.raises(ValueError, match="at least two images"):
        MovingPatches(torch.zeros(shape))

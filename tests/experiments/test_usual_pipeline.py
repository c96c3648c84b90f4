"""The usual pipeline and ours give the same clip, to one grey level (expected: either side, made without the other)."""

import cv2
import numpy as np
import pytest
import torch

from bevstack.experiments.usual_pipeline import (
    BASE,
    SMALL,
    TINY,
    bytes_between_processes,
    our_clip,
    our_images,
    usual_clip,
    usual_images,
)

SIZE = (90, 160)
CAMERAS = 3


def random_clip(settings, lowest=40, blocks=1, seed=0):
    """T lists of N smooth RGB images: bright enough that no distortion makes all channels negative, where the published
    trip through HSV does what nobody meant (docs/compatibility.md); squares of ``blocks`` pixels of one colour."""
    rng = np.random.default_rng(seed)
    size = (SIZE[0] // blocks // 6, SIZE[1] // blocks // 8)

    def image():
        coarse = rng.integers(lowest, 256, (*size, 3), dtype=np.uint8)
        smooth = cv2.resize(coarse, (SIZE[1] // blocks, SIZE[0] // blocks), interpolation=cv2.INTER_LINEAR)
        return np.repeat(np.repeat(smooth, blocks, 0), blocks, 1)

    return [[image() for _ in range(CAMERAS)] for _ in range(settings.num_frames)]


def as_bgr(clip):
    return [[np.ascontiguousarray(image[..., ::-1]) for image in frame] for frame in clip]


def largest_difference(usual, ours, settings):
    """In grey levels."""
    assert usual.dtype == torch.float32 and all(frame.dtype == torch.float32 for frame in ours)
    return ((usual - torch.stack(list(ours))).abs() * torch.tensor(settings.std).view(3, 1, 1)).max()


@pytest.mark.parametrize(
    ("settings", "size", "grey_levels"), [(BASE, (96, 160), 1e-3), (SMALL, (96, 128), 1.0), (TINY, (64, 96), 0.501)]
)
def test_testing_is_equal_to_a_grey_level(settings, size, grey_levels):
    # What is left is the rounding of resized bytes, and of OpenCV's weights for them; without resizing nothing is.
    clip = random_clip(settings)
    usual, ours = usual_clip(as_bgr(clip), settings), our_clip(clip, settings)
    assert usual.shape == (settings.num_frames, CAMERAS, 3, *size)
    assert largest_difference(usual, ours, settings) < grey_levels


@pytest.mark.parametrize("seed", range(6))
def test_training_is_equal_to_a_grey_level(seed):
    clip = random_clip(BASE)
    usual, ours = usual_clip(as_bgr(clip), BASE, seed), our_clip(clip, BASE, seed)
    assert largest_difference(usual, ours, BASE) < 0.05
    assert largest_difference(usual, our_clip(clip, BASE, seed + 1), BASE) > 5, "a distortion would be seen"


@pytest.mark.parametrize("seed", range(4))
def test_training_at_half_size_is_equal_where_the_order_does_not_matter(seed):
    # The usual pipeline distorts before it resizes, ours after: the same where four pixels have one colour.
    clip = random_clip(TINY, blocks=2)
    usual, ours = usual_clip(as_bgr(clip), TINY, seed), our_clip(clip, TINY, seed)
    assert largest_difference(usual, ours, TINY) < 0.05


def test_arguments_are_left_as_they_were():
    clip = random_clip(BASE)
    copies, bgr = [[image.copy() for image in frame] for frame in clip], as_bgr(clip)
    usual_clip(bgr, BASE, 1), our_clip(clip, BASE, 1)
    assert np.array_equal(clip, copies) and np.array_equal(bgr, as_bgr(copies))


def test_files_are_decoded_to_the_same_pixels(tmp_path):
    paths = [[tmp_path / f"{t}{n}.jpg" for n in range(2)] for t in range(3)]
    for frame, images in zip(paths, random_clip(TINY), strict=True):
        for path, image in zip(frame, images, strict=False):
            cv2.imwrite(str(path), image)
    usual, ours = usual_images(paths), our_images(paths)
    assert np.array_equal(as_bgr(ours), usual)
    assert torch.equal(usual_clip(paths, TINY), usual_clip(usual, TINY))
    assert torch.equal(torch.stack(our_clip(paths, TINY)), torch.stack(our_clip(ours, TINY)))


def test_bytes_between_processes():
    # Of the base clip, from its sizes: 24 images of 928 x 1600 or 900 x 1600 pixels of three channels.
    image = np.zeros((900, 1600, 3), dtype=np.uint8)
    usual, ours = bytes_between_processes([[image] * 6] * 4, BASE)
    assert usual == 24 * 928 * 1600 * 3 * 4 and ours == 24 * 900 * 1600 * 3

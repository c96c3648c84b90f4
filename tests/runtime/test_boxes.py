"""Decoding in numpy; expected values: the heads' own ``predict``, and OpenCV's resizing."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from bevstack.engine.export_description import described_head
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.heads import DenseDetectionHead, QueryDetectionHead
from bevstack.runtime.boxes import decoded
from bevstack.runtime.images import prepared, resampled

GRID = BEVGrid(shape=(20, 24), x_range_m=(-12.0, 12.0), y_range_m=(-8.0, 12.0))
CLASSES = ("car", "pedestrian", "barrier")


def dense_head(**settings) -> DenseDetectionHead:
    decoding = dict(max_num=40, nms_radius_m=dict(car=2.0, pedestrian=0.5, barrier=1.0), **settings.pop("decoding", {}))
    return DenseDetectionHead(8, GRID, CLASSES, channels=8, decoding=decoding, outputs=settings)


def query_head(**decoding) -> QueryDetectionHead:
    size = dict(num_layers=2, num_heads=2, num_points=2, feed_forward_channels=8)
    wide = dict(post_center_range_m=(-13.0, -9.0, -6.0, 13.0, 13.0, 4.0))
    return QueryDetectionHead(8, GRID, CLASSES, num_queries=30, decoder=size, decoding={**wide, **decoding})


HEADS = {
    "dense": lambda: dense_head(),
    "dense, all outputs": lambda: dense_head(heading_bins=4, moving=True, quality=True),
    "dense, expected velocity": lambda: dense_head(moving=True, decoding=dict(velocity="expected")),
    "query": lambda: query_head(max_num=25),
    "query, threshold": lambda: query_head(score_threshold=0.6),
    "query, threshold too high": lambda: query_head(score_threshold=0.99, post_center_range_m=None),
}


@pytest.mark.parametrize("name", HEADS)
def test_boxes_are_those_of_the_head(name):
    head = HEADS[name]()
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if isinstance(head, DenseDetectionHead):
        raw = {"heatmap": drawn(1, 3, *GRID.shape), "box": drawn(1, len(head.outputs.regressed), *GRID.shape)}
        raw |= {key: drawn(1, channels, *GRID.shape) for key, channels in head.outputs.channels.items()}
    else:
        raw = {"logits": drawn(2, 1, 30, 3), "boxes": drawn(2, 1, 30, 10) * 4}
    expected = head.predict(raw, [None])[0]["pred_instances_3d"]
    found = decoded({key: value.numpy() for key, value in raw.items()}, described_head(head))
    assert len(found.scores) > 3
    np.testing.assert_allclose(found.scores, expected.scores_3d.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(found.labels, expected.labels_3d.numpy())
    np.testing.assert_allclose(found.boxes, expected.bboxes_3d.tensor.numpy(), rtol=1e-4, atol=1e-4)
    assert found.names == tuple(CLASSES[label] for label in found.labels)


@pytest.mark.parametrize("size", [(45, 80), (90, 100), (31, 200)])
def test_resizing_is_opencvs_to_a_grey_level(size):
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    found = resampled(image, np.diag([size[1] / 160, size[0] / 90, 1.0]), size)
    assert np.abs(found - expected).max() <= 1


def described_images(**changes) -> dict:
    return {
        "source_size_px": [90, 160],
        "size_px": [40, 70],
        "padded_size_px": [64, 96],
        "pixels_from_source": [[0.5, 0, -5.0], [0, 0.5, -5.0], [0, 0, 1]],
        "channel_order": "bgr",
        "scale": [1.0, 0.5, 0.25],
        "bias": [-1.0, -2.0, -3.0],
        **changes,
    }


def test_an_image_is_cut_turned_normalised_and_padded():
    """By hand: an image of one colour; its channels turned, times scale plus bias, zero in the padding."""
    image = np.full((90, 160, 3), (10, 20, 40), np.uint8)
    pixels, transforms = prepared([image, None], described_images())
    assert pixels.shape == (1, 2, 3, 64, 96)
    np.testing.assert_allclose(pixels[0, 0, :, 5, 5], [39.0, 8.0, -0.5])
    assert not pixels[0, 1].any() and not pixels[0, 0, :, 40:].any() and not pixels[0, 0, :, :, 70:].any()
    _, half = prepared([image[::2, ::2]], described_images())
    np.testing.assert_allclose(half[0], transforms[0] @ np.diag([2.0, 2.0, 1.0]))


def test_what_is_no_image_is_refused():
    with pytest.raises(InputError, match=r"step: images\[0\]: 90x90; the file is for 160x90"):
        prepared([np.zeros((90, 90, 3), np.uint8)], described_images())
    with pytest.raises(InputError, match=r"images\[0\]: is float64"):
        prepared([np.zeros((90, 160, 3))], described_images())

"""BEV semantic segmentation: what its losses are means of."""

from __future__ import annotations

import torch

from bevstack.geometry import BEVGrid
from bevstack.models.heads import SemanticSegmentationHead
from bevstack.structures import BEVDataSample, BEVRaster

GRID = BEVGrid(shape=(4, 6), x_range_m=(-6, 6), y_range_m=(-4, 4))
LAYERS = ("drivable_area", "ped_crossing")


def sample_of(layers: torch.Tensor) -> BEVDataSample:
    sample = BEVDataSample(metainfo=dict(token="t"))  # noqa: S106
    sample.gt_rasters = {"map": BEVRaster(layers.to(torch.uint8), LAYERS, GRID)}
    return sample


def dice(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """V-Net's Dice with squares (Milletari et al. 2016, eq. 3), smoothed by 1."""
    probability, target = logits.sigmoid().flatten(), target.float().flatten()
    return 1 - (2 * (probability * target).sum() + 1) / (probability.square().sum() + target.square().sum() + 1)


def test_dice_is_one_ratio_a_layer_over_the_batch():
    # Closed form: both samples' cells of a layer in one ratio; the second sample lacks the second layer.
    head = SemanticSegmentationHead(3, GRID, "map", LAYERS, channels=4, dice_weight=2.0)
    logits = torch.randn(2, 2, *GRID.shape, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(2, 2, *GRID.shape)
    truth[0, 0, :2], truth[0, 1, 3], truth[1, 0, :, 2:] = 1, 1, 1
    found = head.loss({"logits": logits}, [sample_of(layers) for layers in truth])["loss_dice"]
    torch.testing.assert_close(found, dice(logits[:, 0], truth[:, 0]) + dice(logits[:, 1], truth[:, 1]))

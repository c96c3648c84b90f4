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


def test_dice_is_the_mean_over_the_layers_that_are_there():
    # Closed form: three masks of the two samples hold something; the second sample's second layer is empty.
    head = SemanticSegmentationHead(3, GRID, "map", LAYERS, channels=4, criterion=dict(dice_weight=2.0))
    logits = torch.randn(2, 2, *GRID.shape, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(2, 2, *GRID.shape)
    truth[0, 0, :2], truth[0, 1, 3], truth[1, 0, :, 2:] = 1, 1, 1
    found = head.loss({"logits": logits}, [sample_of(layers) for layers in truth])["loss_dice"]
    masks = [(0, 0), (0, 1), (1, 0)]
    torch.testing.assert_close(found, 2 * sum(dice(logits[mask], truth[mask]) for mask in masks) / 3)


def test_no_layer_is_there():
    # An empty sample has no Dice loss, and the cells' gradient stays finite.
    head = SemanticSegmentationHead(3, GRID, "map", LAYERS, channels=4)
    logits = torch.zeros(1, 2, *GRID.shape, requires_grad=True)
    losses = head.loss({"logits": logits}, [sample_of(torch.zeros(2, *GRID.shape))])
    assert losses["loss_dice"] == 0
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all() and logits.grad.abs().sum() > 0

"""BEV semantic segmentation: map layers, vehicles, or any other named layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevstack.geometry import BEVGrid
from bevstack.losses.dense import binary_focal_loss, dice_loss
from bevstack.losses.functional import mean_across_ranks
from bevstack.models.heads.base import BEVHead, resample_bev, target_raster
from bevstack.models.layers.conv import ConvNormReLU, ConvType
from bevstack.models.layers.settings import Settings
from bevstack.models.layers.temperature import require_temperature
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures, BEVRaster


@dataclass(frozen=True)
class RasterCriterion(Settings):
    """What rasters are trained by.

    Args:
        cell_weight, dice_weight: of the focal loss of cells and the Dice loss of layers; 0 leaves Dice out.
        gamma, alpha: of the focal loss; gamma 0 and a negative alpha make it plain cross-entropy.
    """

    cell_weight: float = 10.0
    dice_weight: float = 1.0
    gamma: float = 2.0
    alpha: float = 0.25


@MODELS.register_module()
class SemanticSegmentationHead(BEVHead):
    """Independent sigmoid masks of K layers (layers overlap: a crossing lies on the drivable area).

    Args:
        in_channels, grid: see :class:`BEVHead`; B_t is resampled to the head's grid by metres.
        raster: which ``gt_rasters`` entry holds the truth; predictions get the same name.
        classes: the K layers, in the raster's order.
        channels: width of the convolutions.
        num_convs: how many 3 x 3 convolutions before the classifier.
        resample: what is brought to the head's grid: ``"features"``, so that the convolutions run on it, or
            ``"logits"``, so that they run on B_t's own grid, which is cheaper where the head's is finer.
        criterion: a :class:`RasterCriterion` or its values.
        upscale: the convolutions run on cells that are so many times longer and wider than those of the logits, and
            the classifier predicts ``upscale`` x ``upscale`` of them at each (sub-pixel convolution,
            Shi et al. 2016).
        conv: kind of the 3 x 3 convolutions (:class:`bevstack.models.layers.conv.ConvType`).
        temperature: that logits are divided by where probabilities are predicted; training does without.

    Raises:
        ValueError: ``resample`` is neither of the two, or a temperature that is not above 0.
    """

    class_layers = ("classifier.0",)

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        raster: str,
        classes: Sequence[str],
        channels: int = 64,
        num_convs: int = 2,
        resample: str = "features",
        criterion: RasterCriterion | Mapping | None = None,
        upscale: int = 1,
        conv: ConvType | Mapping | str = "plain",
        temperature: float = 1.0,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.temperature = require_temperature(temperature)
        self.raster, self.classes = raster, tuple(classes)
        if resample not in ("features", "logits"):
            raise ValueError(f"resample: {resample!r} must be 'features' or 'logits'")
        self.resample = resample
        self.criterion = RasterCriterion.build(criterion, "criterion")
        widths = [in_channels] + [channels] * num_convs
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.convs = nn.Sequential(*(ConvNormReLU(before, after, conv=conv) for before, after in pairs))
        self.upscale = upscale
        self.classifier = nn.Sequential(
            nn.Conv2d(widths[-1], len(self.classes) * upscale**2, 1), nn.PixelShuffle(upscale)
        )

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """``logits`` (B, K, Y, X) on the head's grid."""
        if self.resample == "features":
            features = resample_bev(bev, self.grid.coarser(self.upscale))
            return {"logits": self.classifier(self.convs(features))}
        logits = self.classifier(self.convs(bev.features))
        return {"logits": self.resampled(BEVFeatures(logits, bev.grid.finer(self.upscale)))}

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """``loss_cell`` (focal, mean over cells and layers) and ``loss_dice`` (mean over the layers that there are in
        the samples of all ranks), scalars both.

        Args:
            raw: :meth:`forward`'s, ``logits`` (B, K, Y, X).
            samples: B, with the ``raster`` of the head's classes on its grid among their ``gt_rasters``.

        Raises:
            InputError: a sample has no such raster, or one of other classes or on another grid.
        """
        logits = raw["logits"].float()
        target = target_raster(samples, self.raster, self.classes, self.grid).to(logits)
        cells = binary_focal_loss(logits, target, self.criterion.alpha, self.criterion.gamma)
        losses = {"loss_cell": self.criterion.cell_weight * cells.mean()}
        if self.criterion.dice_weight:
            # An empty mask has no overlap to gain, only silence to learn; rare layers (crossings) would then stay so.
            there = target.flatten(2).any(-1).float()
            number = mean_across_ranks(there.sum()).clamp_min(1.0)
            dice = dice_loss(logits.flatten(2), target.flatten(2))
            losses["loss_dice"] = self.criterion.dice_weight * (dice * there).sum() / number
        return losses

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_rasters`` with probabilities (K, Y, X)."""
        probabilities = (raw["logits"].float() / self.temperature).sigmoid()
        return [{"pred_rasters": {self.raster: BEVRaster(p, self.classes, self.grid)}} for p in probabilities]

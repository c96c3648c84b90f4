"""What mirroring and turning a world does to all that a model gets, knows and answers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from bevstack.geometry import BEVGrid, flip_pixels, invert_rigid
from bevstack.models.bev import BEVFormerEncoder, SpatialCrossAttention, TemporalSelfAttention
from bevstack.models.heads import DenseDetectionHead
from bevstack.models.perception import BEVPerception
from bevstack.structures import CameraRig, EgoMotion, Frame

CELLS = 16
GRID = BEVGrid(shape=(CELLS, CELLS), x_range_m=(-16, 16), y_range_m=(-16, 16))  # 2 m cells
CLASSES = ("car", "pedestrian")
# places of a box code: offset x, y; height; log of length, width, height; sine, cosine of yaw; velocity x, y
DX, DY, SIN, COS, VX, VY = 0, 1, 6, 7, 8, 9


@dataclass(frozen=True)
class Symmetry:
    """x -> -x, or a quarter turn to the left: (x, y) -> (-y, x)."""

    quarter_turn: bool

    def maps(self, values: Tensor) -> Tensor:
        """(..., Y, X): what lay at (x, y) lies where the symmetry brings it."""
        return values.transpose(-2, -1).flip(-1) if self.quarter_turn else values.flip(-1)

    def vectors(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (-y, x) if self.quarter_turn else (-x, y)

    def codes(self, codes: Tensor, dim: int = -1) -> Tensor:
        """Box codes, their ten values along ``dim``."""
        values = list(codes.unbind(dim))
        for x, y in ((DX, DY), (COS, SIN), (VX, VY)):
            values[x], values[y] = self.vectors(values[x], values[y])
        return torch.stack(values, dim)

    def boxes(self, boxes: Tensor) -> Tensor:
        """(G, 9) LiDAR boxes."""
        out = boxes.clone()
        out[:, 0], out[:, 1] = self.vectors(boxes[:, 0], boxes[:, 1])
        out[:, 6] = boxes[:, 6] + math.pi / 2 if self.quarter_turn else math.pi - boxes[:, 6]
        out[:, 7], out[:, 8] = self.vectors(boxes[:, 7], boxes[:, 8])
        return out

    @property
    def world(self) -> Tensor:
        """(4, 4): where the symmetry brings a place."""
        matrix = torch.eye(4)
        matrix[0, 0], matrix[1, 0] = self.vectors(torch.tensor(1.0), torch.tensor(0.0))
        matrix[0, 1], matrix[1, 1] = self.vectors(torch.tensor(0.0), torch.tensor(1.0))
        return matrix

    def pictures(self, levels: Tensor) -> Tensor:
        """(..., w): a mirrored world's pictures are mirrored, a car that turns with its world sees the same."""
        return levels if self.quarter_turn else levels.flip(-1)

    def rig(self, rig: CameraRig) -> CameraRig:
        """The cameras where the symmetry brings them, their own x axis still to the right of their pictures."""
        camera, flip = torch.eye(4), torch.eye(3)
        if not self.quarter_turn:
            camera[0, 0], flip = -1.0, flip_pixels(rig.padded_size_px[1]).float()
        return replace(
            rig,
            pixels_from_camera=flip @ rig.pixels_from_camera @ camera[:3, :3],
            camera_from_bev=camera @ rig.camera_from_bev @ invert_rigid(self.world),
        )

    def frame(self, frame: Frame) -> Frame:
        """What the cameras see of the other world; of a frame that holds features, not sweeps."""
        assert frame.features is not None and frame.sweeps is None
        motion = self.world @ frame.motion.previous_from_current @ invert_rigid(self.world)
        return Frame(
            self.pictures(frame.images),
            self.rig(frame.rig),
            EgoMotion(motion, frame.motion.has_previous, frame.motion.seconds),
            features=tuple(self.pictures(level) for level in frame.features),
        )


SYMMETRIES = [pytest.param(Symmetry(False), id="mirrored"), pytest.param(Symmetry(True), id="turned")]


class GivenPosition(nn.Module):
    """A positional encoding (C, Y, X) as it is."""

    def __init__(self, encoding: Tensor) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self) -> Tensor:
        return self.encoding


def trained(module: nn.Module) -> nn.Module:
    """Evaluating, with weights of which none is zero and running statistics of their own."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=0.3)
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 2)
    return module.eval()


def with_symmetry(module: nn.Module, symmetry: Symmetry) -> nn.Module:
    """The module as it would have learned in the other world: kernels, queries and positions of the BEV moved, offsets
    on it and box codes mirrored or turned; kernels and offsets in pictures mirrored where these are."""
    other = copy.deepcopy(module)
    in_pictures = [other.backbone, other.neck] if isinstance(other, BEVPerception) else []
    of_pictures = {id(part) for root in in_pictures for part in root.modules()}
    for part in other.modules():
        if isinstance(part, nn.Conv2d):
            move = symmetry.pictures if id(part) in of_pictures else symmetry.maps
            part.weight.data = move(part.weight.data)
        if isinstance(part, SpatialCrossAttention) and not symmetry.quarter_turn:
            _move_offsets(part.sampling_offsets, symmetry)
        if isinstance(part, TemporalSelfAttention):
            _move_offsets(part.sampling_offsets, symmetry)
        if isinstance(part, BEVFormerEncoder):
            queries = part.queries.weight.data.t().unflatten(1, part.grid.shape)
            part.queries.weight.data = symmetry.maps(queries).flatten(1).t()
            if symmetry.quarter_turn:
                part.position = GivenPosition(symmetry.maps(part.position().detach()))
            else:
                columns = part.position.column_embed.weight
                columns.data = columns.data.flip(0)
        if isinstance(part, DenseDetectionHead):
            last = part.box[1]
            last.weight.data, last.bias.data = (
                symmetry.codes(values, dim=0) for values in (last.weight.data, last.bias.data)
            )
    return other


def _move_offsets(linear: nn.Linear, symmetry: Symmetry) -> None:
    """Of a layer whose outputs are offsets (x, y), one pair after another."""
    for values in (linear.weight.data, linear.bias.data):
        x, y = symmetry.vectors(values[0::2].clone(), values[1::2].clone())
        values[0::2], values[1::2] = x, y


def assert_same_boxes(symmetry: Symmetry, one, other) -> None:
    """Predicted instances of the two worlds: the same scores in the same order, every box where it belongs."""
    torch.testing.assert_close(other.scores_3d, one.scores_3d, rtol=1e-3, atol=1e-4)
    assert torch.equal(other.labels_3d, one.labels_3d)
    wanted, found = symmetry.boxes(one.bboxes_3d.tensor), other.bboxes_3d.tensor
    turn = (found[:, 6] - wanted[:, 6] + math.pi).remainder(2 * math.pi) - math.pi
    assert turn.abs().max() < 1e-3
    kept = [0, 1, 2, 3, 4, 5, 7, 8]
    torch.testing.assert_close(found[:, kept], wanted[:, kept], rtol=1e-3, atol=1e-3)

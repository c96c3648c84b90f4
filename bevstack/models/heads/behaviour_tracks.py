"""Where the agents of the behaviour head were: tracks, noisy boxes for training, B sampled along a track."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.geometry import BEVGrid, sample_bev
from bevstack.geometry.boxes3d import turned
from bevstack.models.layers.settings import Settings

# Where a box is sampled: its centre, then this much of its reach ahead, behind, to the left and to the right.
_SAMPLING_POINTS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
NUM_SAMPLING_POINTS = len(_SAMPLING_POINTS)
MIN_REACH_M = 1.0


@dataclass(frozen=True)
class TrackJitter(Settings):
    """Standard deviations of the noise that makes true boxes look like detected ones, in training.

    Args:
        center_m: of the centre's x and y.
        log_size: of the logarithm of length, width and height.
        yaw: radians.
        velocity_mps: of the velocity's x and y.
        unknown_velocity: share of the boxes whose velocity is taken away.
        extrapolated: share of the boxes whose track is extrapolated from the noisy velocity, as a detected box's is,
            in place of the true one.
    """

    center_m: float = 0.3
    log_size: float = 0.1
    yaw: float = 0.1
    velocity_mps: float = 1.0
    unknown_velocity: float = 0.2
    extrapolated: float = 0.5

    def boxes(self, boxes: Tensor) -> Tensor:
        """A noisy copy of boxes (G, 9)."""
        scale = [self.center_m, self.center_m, 0.0, *[self.log_size] * 3, self.yaw, *[self.velocity_mps] * 2]
        noise = torch.randn_like(boxes) * boxes.new_tensor(scale)
        noisy = boxes + noise
        noisy[:, 3:6] = boxes[:, 3:6] * noise[:, 3:6].exp()
        unknown = torch.rand(len(boxes), 1, device=boxes.device) < self.unknown_velocity
        noisy[:, 7:9] = torch.where(unknown, torch.nan, noisy[:, 7:9])
        return noisy

    def tracks(self, true_tracks: Tensor, noisy_boxes: Tensor, seconds: Tensor) -> Tensor:
        """Tracks (G, M, 2) of which a share is extrapolated; all go through the noisy centres' offset."""
        moved = true_tracks + (noisy_boxes[:, None, :2] - true_tracks[:, :1])
        guessed = torch.rand(len(noisy_boxes), 1, 1, device=noisy_boxes.device) < self.extrapolated
        return torch.where(guessed, extrapolated_tracks(noisy_boxes, seconds), moved)


DETECTOR_LIKE = TrackJitter()


def extrapolated_tracks(boxes: Tensor, seconds: Tensor) -> Tensor:
    """Where boxes were if they have moved as they move now.

    Args:
        boxes: (G, 9) in the current BEV frame; an unknown (NaN) velocity counts as none.
        seconds: (M,) how long ago each frame was.

    Returns:
        (G, M, 2) metres, centre - velocity * seconds, in the current BEV frame.
    """
    velocity = boxes[:, None, 7:9].nan_to_num(nan=0.0)
    return boxes[:, None, :2] - velocity * seconds.to(boxes)[:, None]


def sampling_points(boxes: Tensor, centers: Tensor) -> Tensor:
    """Points of the ground under boxes that stand at other places, turned as they are now.

    Args:
        boxes: (G, 9), for size and yaw; a small object is sampled a metre around its centre.
        centers: (G, M, 2) metres.

    Returns:
        (G, M, P, 2) metres: centre, ahead, behind, left, right.
    """
    reach = (boxes[:, 3:5] / 2).clamp_min(MIN_REACH_M)
    offsets = turned(boxes.new_tensor(_SAMPLING_POINTS) * reach.unsqueeze(1), boxes[:, 6])
    return centers.unsqueeze(2) + offsets.unsqueeze(1)


def sampled_history(history: Tensor, grid: BEVGrid, points: Tensor) -> Tensor:
    """Past B, in the current BEV frame, at places of that frame; bilinearly, zero outside the grid.

    Args:
        history: (M, C, Y, X) of one sample.
        grid: whose extent the history has; its shape plays no part.
        points: (G, M, P, 2) metres, each to be looked up in its frame; a NaN gives zeros.

    Returns:
        (G, M, P, C) float32.
    """
    places = points.float().nan_to_num(nan=1e6).transpose(0, 1)  # (M, G, P, 2)
    return sample_bev(history, grid, places).permute(2, 0, 3, 1)


def in_box_axes(boxes: Tensor, vectors: Tensor) -> Tensor:
    """Vectors (G, ..., 2) of the BEV frame along and across (to the left of) their box (G, 9)."""
    yaw = boxes[:, 6].view(-1, *[1] * (vectors.ndim - 2))
    return turned(vectors.unsqueeze(-2), -yaw).squeeze(-2)

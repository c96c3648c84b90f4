"""Where attention looked for some cells of the BEV: a value that pictures are made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class AttendedPlaces:
    """Of K cells of one sample, where the encoder's last layer sampled and how much each sample counted.

    Weights are means over the attention heads; a cell's sum to 1 over the cameras that see it, and to 1 over both BEVs.

    Args:
        cells: (K, 2) metres, the cells' centres.
        cameras: (K, S) which camera each of the S slots is, -1 for an empty one.
        rays: (K, S, P, 2) where the samples lie in it: x / z and y / z of its frame, which no resizing changes.
        image_weights: (K, S, P), zero in empty slots.
        past: (K, 2, P', 2) metres of the current BEV frame where temporal attention sampled in the previous BEV
            (aligned to this frame) and in the current one; None without temporal attention or history.
        past_weights: (K, 2, P'), None likewise.
    """

    cells: Tensor
    cameras: Tensor
    rays: Tensor
    image_weights: Tensor
    past: Tensor | None = None
    past_weights: Tensor | None = None

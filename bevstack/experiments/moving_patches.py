"""Clips of known motion, made of single images: a patch of one image moves over a patch of another.

What a network learns of motion from nuScenes' boxes comes from a few object centres a sample. Here every pixel has a
known speed and there are as many clips as one likes, without labels and without camera sweeps; optical flow networks
are taught likewise (Dosovitskiy et al. 2015, FlowNet, arXiv 1504.06852, section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class MovingPatches:
    """Draws clips in which a rectangle of one image moves over a part of another, both at constant speed.

    Both grow or shrink, too, as what is driven towards does; beyond an image's edge its mirror image is seen.

    Args:
        images: (M, 3, H, W) float, at least 2.
        num_frames: T.
        size_px: side of the square clips, at most H and W.
        speed_px: standard deviation of the speed (u, v), pixels a frame: of the background, and of the rectangle
            against the background. One in five of either stands still.
        growth: standard deviation of the logarithmic growth a frame, likewise.

    Raises:
        ValueError: fewer than two images, or smaller ones than the clips.
    """

    images: Tensor
    num_frames: int = 7
    size_px: int = 64
    speed_px: tuple[float, float] = (3.0, 1.0)
    growth: float = 0.01

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or len(self.images) < 2 or min(self.images.shape[-2:]) < self.size_px:
            raise ValueError(
                f"need at least two images (M, 3, H, W) of {self.size_px} px a side, got {tuple(self.images.shape)}"
            )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` clips (count, T, 3, size, size), oldest frame first, and the motion (count, 2, size, size) of each
        pixel of the last frame: (u, v) pixels a frame."""
        height, width = self.images.shape[-2:]

        def uniform(columns: int) -> Tensor:
            return torch.rand(count, columns, generator=generator)

        def normal(columns: int) -> Tensor:
            return torch.randn(count, columns, generator=generator)

        def moves() -> Tensor:
            return (uniform(1) < 0.8).float()

        def places(half: float) -> Tensor:
            room = torch.tensor([width, height]) - 2 * half
            return half + uniform(2) * room.clamp_min(0.0)

        speed = torch.tensor(self.speed_px)
        behind = normal(2) * speed * moves()
        behind_growth = normal(1) * self.growth
        front = behind + normal(2) * speed * moves()
        front_growth = behind_growth + normal(1) * self.growth
        half_sides = self.size_px * torch.exp(uniform(2) * 1.6 - 2.4)  # 0.09 to 0.45 of the side
        center = (uniform(2) - 0.5) * 0.6 * self.size_px
        chosen = torch.randint(len(self.images), (2, count), generator=generator)
        half = self.size_px / 2
        behind_source, front_source = places(half), places(half)

        behind_place = self._place(torch.zeros(count, 2), behind, behind_growth)
        front_place = self._place(center, front, front_growth)
        in_front = (front_place.abs() < half_sides.view(-1, 1, 1, 1, 2)).all(-1)  # (count, T, size, size)
        clips = torch.where(
            in_front.unsqueeze(1),
            self._seen(chosen[1], front_place + front_source.view(-1, 1, 1, 1, 2)),
            self._seen(chosen[0], behind_place + behind_source.view(-1, 1, 1, 1, 2)),
        )
        motion = torch.where(
            in_front[:, -1].unsqueeze(-1),
            front.view(-1, 1, 1, 2) + front_growth.view(-1, 1, 1, 1) * front_place[:, -1],
            behind.view(-1, 1, 1, 2) + behind_growth.view(-1, 1, 1, 1) * behind_place[:, -1],
        )
        return clips.transpose(1, 2), motion.permute(0, 3, 1, 2)

    def _place(self, center: Tensor, speed: Tensor, growth: Tensor) -> Tensor:
        """(count, T, size, size, 2) where on a thing each pixel of each frame lies, from its centre, in pixels of the
        last frame; ``center`` (count, 2) is where it is then, from the clip's middle."""
        axis = torch.arange(self.size_px) + 0.5 - self.size_px / 2
        pixels = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # u, v
        time = torch.arange(1 - self.num_frames, 1.0).view(1, -1, 1, 1, 1)
        away = pixels - center.view(-1, 1, 1, 1, 2) - speed.view(-1, 1, 1, 1, 2) * time
        return away / torch.exp(growth.view(-1, 1, 1, 1, 1) * time)

    def _seen(self, chosen: Tensor, place: Tensor) -> Tensor:
        """(count, 3, T, size, size) the chosen images at places (count, T, size, size, 2) in pixels."""
        height, width = self.images.shape[-2:]
        grid = place / place.new_tensor([width / 2, height / 2]) - 1
        images = self.images[chosen].float()
        seen = F.grid_sample(images, grid.flatten(1, 2), padding_mode="reflection", align_corners=False)
        return seen.unflatten(2, (self.num_frames, self.size_px))

"""What dense detection predicts at a centre, where asked, beside a box code: heading bins, motion, quality.

L1 on sine and cosine of the heading, and on velocity, finds medians: the usual direction, and standing still, where
most objects do. Here what is undecided between several is a choice, and a number is learned where it has one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.geometry.box_code import BOX_CODE_SIZE
from bevstack.geometry.heading_bins import decode_heading
from bevstack.models.layers.heatmaps import PeakDecoding
from bevstack.models.layers.settings import Settings
from bevstack.models.layers.temperature import require_temperature

HEADING, VELOCITY = [6, 7], [8, 9]
"""Which of the ten values at a cell are sine and cosine of yaw, and velocity."""
VELOCITY_RULES = ("threshold", "expected")


@dataclass(frozen=True)
class CenterOutputs(Settings):
    """What is predicted at each cell beside the heatmap.

    Args:
        heading_bins: n > 1 for a heading as n bins and an angle from each (:mod:`bevstack.geometry.heading_bins`) in
            place of sine and cosine; 0 for these.
        moving: whether an object moves is an output of its own, and velocity is learned where it does.
        quality: how near a peak's box is to an object of its class, learned at the peaks that the heatmap has.

    Raises:
        ValueError: one bin, or fewer than none.
    """

    heading_bins: int = 0
    moving: bool = False
    quality: bool = False

    def __post_init__(self) -> None:
        if self.heading_bins == 1 or self.heading_bins < 0:
            raise ValueError(f"heading_bins: {self.heading_bins}: must be 0 or at least 2")

    @property
    def regressed(self) -> list[int]:
        """Which of the ten values of a box code (offset first) the output ``box`` has, in order."""
        elsewhere = HEADING * bool(self.heading_bins) + VELOCITY * self.moving
        return [value for value in range(BOX_CODE_SIZE) if value not in elsewhere]

    @property
    def channels(self) -> dict[str, int]:
        """Channels of ``heading`` (logits, then angles), ``motion`` (logit of moving, velocity) and ``quality``."""
        channels = {"heading": 2 * self.heading_bins, "motion": 3 * self.moving, "quality": int(self.quality)}
        return {name: number for name, number in channels.items() if number}


@dataclass(frozen=True)
class CenterDecoding(PeakDecoding):
    """How boxes are read from the peaks; see also :class:`PeakDecoding`.

    Args:
        velocity: of a head that says whether an object moves. ``threshold``: its velocity if that is likelier than
            not, else 0 (the median: least mean error). ``expected``: velocity times probability (the mean).
        quality_power: of a head that predicts quality q, the score is p^(1 - power) q^power of the heatmap's
            probability p: 0 for the heatmap's alone.
        temperature: of the scores of boxes (:func:`bevstack.models.layers.temperature.tempered`), after everything else
            is decided: the boxes and their order stay.

    Raises:
        ValueError: an unknown rule, a power outside [0, 1], or a temperature that is not above 0.
    """

    velocity: str = "threshold"
    quality_power: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_temperature(self.temperature)
        if self.velocity not in VELOCITY_RULES:
            raise ValueError(f"velocity: {self.velocity!r} is none of {', '.join(VELOCITY_RULES)}")
        if not 0 <= self.quality_power <= 1:
            raise ValueError(f"quality_power: {self.quality_power} is not in [0, 1]")


def box_codes(at_cells: Mapping[str, Tensor], outputs: CenterOutputs, velocity_rule: str) -> Tensor:
    """The ten values at each of D cells, offset first, from what a head predicts there.

    Args:
        at_cells: the raw outputs but the heatmap, (D, channels) each.
        outputs: of the head.
        velocity_rule: see :class:`CenterDecoding`.

    Returns:
        (D, 10) float32: offset (x, y) in cells, height of the centre, log of length, width, height, sine and cosine of
        yaw, velocity.
    """
    box = at_cells["box"].float()
    code = box.new_zeros(len(box), BOX_CODE_SIZE)
    code[:, outputs.regressed] = box
    if outputs.heading_bins:
        yaw = decode_heading(*at_cells["heading"].float().chunk(2, dim=1))
        code[:, HEADING] = torch.stack([yaw.sin(), yaw.cos()], dim=1)
    if outputs.moving:
        logit, velocity = at_cells["motion"].float().split((1, 2), dim=1)
        probability = logit.sigmoid()
        code[:, VELOCITY] = velocity * (probability if velocity_rule == "expected" else probability > 0.5)
    return code


def localisation_quality(
    places: Tensor, labels: Tensor, true_places: Tensor, true_labels: Tensor, scale_m: float
) -> Tensor:
    """How near D found objects are to a true one of their class: exp(-distance / scale), 0 where there is none.

    Args:
        places, true_places: (D, 2) and (G, 2) metres; labels, true_labels: (D,) and (G,).
        scale_m: distance at which quality is 1 / e.

    Returns:
        (D,) in [0, 1].
    """
    distance = torch.cdist(places.float(), true_places.float())
    distance = distance.masked_fill(labels.unsqueeze(1) != true_labels, torch.inf)
    nearest = distance.amin(1) if distance.shape[1] else distance.new_full((len(places),), torch.inf)
    return torch.exp(-nearest / scale_m)

"""A panel of what agents are doing: boxes from above, coloured and lettered by attribute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.structures.behaviour import BEHAVIOURS
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.drawing import Text, draw_outline, draw_polygon, draw_segment, draw_texts
from bevstack.visualization.painters import PanelPainter
from bevstack.visualization.palette import GROUND, INK


@dataclass(frozen=True)
class BehaviourStyle:
    """How an attribute looks: a colour, and a letter for those who do not tell the colours apart."""

    letter: str
    color: tuple[int, int, int]
    text: str


STYLES = {
    "vehicle.moving": BehaviourStyle("M", (0, 140, 90), "vehicle moving"),
    "vehicle.stopped": BehaviourStyle("S", (205, 45, 45), "vehicle stopped"),
    "vehicle.parked": BehaviourStyle("P", (105, 115, 130), "vehicle parked"),
    "pedestrian.moving": BehaviourStyle("w", (20, 100, 220), "pedestrian moving"),
    "pedestrian.standing": BehaviourStyle("s", (215, 120, 0), "pedestrian standing"),
    "pedestrian.sitting_lying_down": BehaviourStyle("l", (130, 80, 170), "pedestrian sitting or lying"),
    "cycle.with_rider": BehaviourStyle("r", (0, 150, 165), "cycle with rider"),
    "cycle.without_rider": BehaviourStyle("o", (150, 130, 60), "cycle without rider"),
}
"""By attribute; capital letters for vehicles, small ones for people and cycles."""


@VISUALIZERS.register_module()
class BehaviourPainter(PanelPainter):
    """Boxes of agents from above with their predicted attributes; a wrong one is ringed where the truth is known.

    Args:
        score_thr: boxes with a lower score are left out.
        truth: show the true boxes and attributes in place of the predicted ones.
        max_distance_m: how near a true box of the same class must be to judge a prediction by it.
    """

    fields = ("pred_instances_3d.attribute_names",)

    def __init__(self, score_thr: float = 0.3, truth: bool = False, max_distance_m: float = 2.0) -> None:
        self.score_thr, self.truth, self.max_distance_m = score_thr, truth, max_distance_m
        self.title = "true behaviour" if truth else "behaviour"
        self.fields = ("gt_instances_3d.attribute_names",) if truth else self.fields

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the window's shape."""
        instances = sample.gt_instances_3d if self.truth else sample.pred_instances_3d
        agents = _agents(instances, sample.metainfo["classes"], None if self.truth else self.score_thr)
        image = draw_bev(window)
        line, size = max(1.0, window.size_px / 420), max(10.0, window.size_px / 48)
        texts = []
        wrong = [] if self.truth else self._wrong(sample, agents)
        footprints = window.pixels(agents.drawn.footprints)
        for row, (corners, attribute) in enumerate(zip(footprints, agents.attributes, strict=True)):
            style, center = STYLES[attribute], corners.mean(0)
            draw_polygon(image, corners, style.color, 0.55)
            draw_outline(image, corners, style.color, line)
            draw_segment(image, center, corners[:2].mean(0), style.color, line)
            if row in wrong:
                _draw_ring(image, center, size, line)
            beside = center + np.array([0.5 * size + np.ptp(corners[:, 0]) / 2, 0.0])
            texts.append(Text(tuple(beside), style.letter, size, style.color, "mm", True, GROUND))
        return draw_texts(image, texts + _legend(image, size, with_rings=not self.truth))

    def _wrong(self, sample: BEVDataSample, agents: _Agents) -> list[int]:
        """Rows whose attribute is not that of the nearest true box of the class."""
        if "gt_instances_3d" not in sample or "attribute_names" not in sample.gt_instances_3d:
            return []
        true = _agents(sample.gt_instances_3d, sample.metainfo["classes"], None)
        rows = []
        for row, (box, name) in enumerate(zip(agents.drawn.boxes, agents.drawn.names, strict=True)):
            distance = np.hypot(*(true.drawn.boxes[:, :2] - box[:2]).T)
            distance[[other != name for other in true.drawn.names]] = np.inf
            if len(distance) and distance.min() < self.max_distance_m:
                if true.attributes[int(distance.argmin())] != agents.attributes[row]:
                    rows.append(row)
        return rows


@dataclass(frozen=True)
class _Agents:
    """Boxes that have an attribute, and these."""

    drawn: DrawnBoxes
    attributes: tuple[str, ...]


def _agents(instances: Any, classes: tuple[str, ...], score_thr: float | None) -> _Agents:
    """The boxes with a known attribute and a score of at least ``score_thr``."""
    keep = np.array([name in STYLES for name in instances["attribute_names"]], dtype=bool)
    if score_thr is not None:
        keep &= instances["scores_3d"].detach().cpu().numpy() >= score_thr
    rows = np.flatnonzero(keep)
    boxes = instances["bboxes_3d"].tensor.detach().cpu().double().numpy()[rows]
    labels = instances["labels_3d"].tolist()
    names = tuple(classes[labels[row]] for row in rows)
    return _Agents(DrawnBoxes(boxes, names), tuple(instances["attribute_names"][row] for row in rows))


def _draw_ring(image: np.ndarray, center: np.ndarray, radius: float, line: float) -> None:
    middle = np.round((center - 0.5) * 16).astype(int).tolist()  # OpenCV's fixed point, sixteenths of a pixel
    cv2.circle(image, middle, round(radius * 16), INK, max(1, round(line)), cv2.LINE_AA, 4)


def _legend(image: np.ndarray, size: float, with_rings: bool) -> list[Text]:
    """Letters and names, in the lower right corner; what a ring means."""
    lines = [(f"{STYLES[name].text}  {STYLES[name].letter}", STYLES[name].color) for name in BEHAVIOURS]
    lines += [("ringed: not what the truth says", INK)] if with_rings else []
    right, top = image.shape[1] - 8.0, image.shape[0] - 8.0 - 1.25 * size * (len(lines) - 1)
    return [
        Text((right, top + 1.25 * size * row), line, 0.85 * size, color, "rb", True, GROUND)
        for row, (line, color) in enumerate(lines)
    ]

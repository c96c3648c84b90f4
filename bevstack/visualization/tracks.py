"""Identities from above: boxes coloured by who they are, each with the trail of where it was."""

from __future__ import annotations

import colorsys

import cv2
import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.structures.poses import augmented_from_global
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.drawing import Text, draw_outline, draw_polygon, draw_segment, draw_texts
from bevstack.visualization.painters import PanelPainter, true_boxes
from bevstack.visualization.palette import GROUND

_GOLDEN = 0.618033988749895  # successive identities get hues far apart


def color_of_identity(identity: int) -> tuple[int, int, int]:
    """RGB of an identity, the same in every picture; neighbours in number differ strongly in hue."""
    saturation, value = ((0.9, 0.8), (0.7, 0.62), (1.0, 0.92))[(identity // 5) % 3]
    parts = colorsys.hsv_to_rgb((identity * _GOLDEN) % 1.0, saturation, value)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def fading_line(image: np.ndarray, points: np.ndarray, color: tuple[int, int, int], width_px: float) -> None:
    """Draw a line through points (P, 2) in pixels in place: a dot at each, fainter and thinner towards the first."""
    number = len(points)
    for place in range(1, number):
        strength = 0.25 + 0.75 * place / (number - 1)
        red, green, blue = (round(strength * c + (1 - strength) * g) for c, g in zip(color, GROUND, strict=True))
        faded = red, green, blue
        draw_segment(image, points[place - 1], points[place], faded, max(1.0, width_px * strength))
        if place < number - 1:
            corner = np.round((points[place] - 0.5) * 16).astype(int).tolist()
            if np.abs(corner).max() < 1 << 20:
                cv2.circle(image, corner, round(16 * width_px * 0.8), faded, -1, cv2.LINE_AA, 4)


@VISUALIZERS.register_module()
class TrackPainter(PanelPainter):
    """Tracked boxes and their trails.

    Reads what :func:`bevstack.tracking.track_samples` sets: ``pred_instances_3d.track_ids``, and ``track_trails``,
    places in the global frame, which are drawn where they lie as seen from the car now: what stands still has a trail
    that is a point, whatever the car does.

    Args:
        score_thr: boxes with a lower score are left out.
        show_truth: whether to draw the true boxes as grey outlines below.
        show_numbers: whether to write each identity beside its box.
        title: written on the panel.
    """

    fields = ("track_trails",)

    def __init__(
        self, score_thr: float = 0.3, show_truth: bool = True, show_numbers: bool = True, title: str = "tracks"
    ) -> None:
        self.score_thr, self.show_truth, self.show_numbers, self.title = score_thr, show_truth, show_numbers, title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the window's shape."""
        nothing = DrawnBoxes(np.zeros((0, 9)), ())
        image = draw_bev(window, nothing, true_boxes(sample) if self.show_truth else None)
        return self._draw(image, window, sample, max(1.0, window.size_px / 420))

    def _draw(self, image: np.ndarray, window: BEVWindow, sample: BEVDataSample, line: float) -> np.ndarray:
        instances = sample.pred_instances_3d
        ids = instances.track_ids.cpu().numpy()
        boxes = instances.bboxes_3d.tensor.detach().cpu().double().numpy()
        shown = np.flatnonzero((ids >= 0) & (instances.scores_3d.detach().cpu().numpy() >= self.score_thr))
        matrix = augmented_from_global(sample).numpy()
        texts: list[Text] = []
        for row in shown:
            trail = np.asarray(sample.track_trails[int(ids[row])])
            places = trail @ matrix[:3, :3].T + matrix[:3, 3]
            fading_line(image, window.pixels(places[:, :2]), color_of_identity(int(ids[row])), 1.6 * line)
        footprints = DrawnBoxes(boxes[shown], ("",) * len(shown)).footprints
        for row, footprint in zip(shown, window.pixels(footprints), strict=True):
            color = color_of_identity(int(ids[row]))
            draw_polygon(image, footprint, color, 0.75)
            draw_outline(image, footprint, color, line)
            draw_segment(image, footprint[0], footprint[1], color, line + 1)
            if self.show_numbers:
                spot = footprint.max(0) + 2
                texts.append(Text(tuple(spot), str(ids[row]), max(9, window.size_px / 60), color, "lt", halo=GROUND))
        return draw_texts(image, texts)

"""One picture of one sample: its cameras with boxes, beside panels from above, under a title, over a legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.visualization.bev import BEVWindow, quarter_turns_of
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.cameras import CameraView, draw_cameras
from bevstack.visualization.drawing import Text, draw_polygon, draw_texts, fitted, text_width
from bevstack.visualization.painters import (
    CameraPainter,
    Painter,
    PanelPainter,
    build_painter,
    predicted_boxes,
    registered_painters,
    true_boxes,
)
from bevstack.visualization.palette import BACKGROUND, CLASS_COLORS, INK, LAYER_COLORS, TRUTH, legend_color_of, pretty

_GAP = 10


@VISUALIZERS.register_module()
class SampleVisualizer:
    """Composes the picture of a sample.

    Args:
        painters: what is drawn, panels left to right; None for every registered painter, of which each sample shows
            those that it has fields for: the prediction, the ground truth, then the others in the order of
            registration.
        score_thr: predicted boxes with a lower score are not drawn; painters that take a ``score_thr`` get it, too,
            unless they have their own.
        camera_height_px: height of one camera in the picture; its width follows the first camera's shape, cameras of
            other shapes are fitted in.
        x_range_m, y_range_m: extent of the panels in the BEV frame.
        layout: "wide" puts the panels right of the cameras, "tall" below them, many in several rows.
    """

    def __init__(
        self,
        painters: Sequence[Painter | Mapping] | None = None,
        score_thr: float = 0.3,
        camera_height_px: int = 288,
        x_range_m: tuple[float, float] = (-51.2, 51.2),
        y_range_m: tuple[float, float] = (-51.2, 51.2),
        layout: str = "wide",
    ) -> None:
        if layout not in ("wide", "tall"):
            raise ValueError(f"layout: '{layout}' is neither 'wide' nor 'tall'")
        if painters is None:
            self.painters = registered_painters(score_thr)
        else:
            self.painters = [build_painter(painter, score_thr) for painter in painters]
        self.score_thr, self.camera_height_px, self.layout = score_thr, camera_height_px, layout
        self.x_range_m, self.y_range_m = (x_range_m[0], x_range_m[1]), (y_range_m[0], y_range_m[1])

    def draw(self, sample: BEVDataSample, views: Sequence[CameraView]) -> np.ndarray:
        """The whole picture.

        Args:
            sample: its predicted boxes are projected into the cameras, its true boxes where nothing is predicted; boxes
                outside the panels' extent are not.
            views: the cameras, of the BEV frame that the sample's boxes are in, in the order of the rig.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        predicted = predicted_boxes(sample, self.score_thr)
        boxes = predicted if predicted is not None else true_boxes(sample)
        boxes = boxes if boxes is not None else DrawnBoxes(np.zeros((0, 9)), ())
        forward = forward_bearing(views)
        height, width = views[0].image.shape[:2]
        cell = self.camera_height_px, round(self.camera_height_px * width / height)
        near = boxes.within(self.x_range_m, self.y_range_m)
        drawing = [painter for painter in self.painters if painter.draws(sample)]
        # The legend lists every class, shown or not, so that it is the same in every picture of a scene.
        names = [*sample.metainfo.get("classes", ()), *boxes.names]
        names += [name for painter in drawing for name in painter.legend(sample)]
        for painter in drawing:
            if isinstance(painter, CameraPainter):
                views = painter.paint(sample, views, self.camera_height_px)
        painters = [painter for painter in drawing if isinstance(painter, PanelPainter)]
        cameras = draw_cameras(views, near, cell, forward)
        window = BEVWindow(self.x_range_m, self.y_range_m, cameras.shape[0], quarter_turns_of(forward))
        if self.layout == "tall":
            columns = panels_in_a_row(len(painters))
            room = (cameras.shape[1] - _GAP * (columns - 1)) // columns
            window = BEVWindow(self.x_range_m, self.y_range_m, room, window.quarter_turns)
        painted = [self._panel(painter, sample, window) for painter in painters]
        panels = [panel for panel in painted if panel is not None]
        if self.layout == "wide":
            body = _joined([cameras, *panels], axis=1)
        else:
            columns = panels_in_a_row(len(panels))
            rows = [_joined(panels[first : first + columns], axis=1) for first in range(0, len(panels), columns)]
            body = _joined([cameras, *rows], axis=0, centred=True)
        head = _title(self.title(sample, predicted), body.shape[1])
        compared = predicted is not None and true_boxes(sample) is not None
        foot = _legend(names, body.shape[1], with_truth=compared)
        return np.pad(
            _joined([head, body, foot], axis=0), ((_GAP, _GAP), (_GAP, _GAP), (0, 0)), constant_values=BACKGROUND[0]
        )

    def _panel(self, painter: PanelPainter, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """A painter's panel, as high as the others and with its title; None where it has nothing to show.

        Raises:
            TypeError: the painter's picture is not an (H, W, 3) uint8 array.
        """
        panel = painter.paint(sample, window)
        if panel is None:
            return None
        if not isinstance(panel, np.ndarray) or panel.dtype != np.uint8 or panel.ndim != 3 or panel.shape[2] != 3:
            found = f"{getattr(panel, 'dtype', type(panel).__name__)} {getattr(panel, 'shape', '')}"
            raise TypeError(f"{type(painter).__name__}.paint() must return an (H, W, 3) uint8 array, not {found}")
        height, width = window.shape
        width = max(width, round(panel.shape[1] * height / panel.shape[0])) if self.layout == "wide" else width
        panel = panel if panel.shape[0] == height else fitted(panel, height, width, BACKGROUND)
        if not painter.title:
            return panel
        size = max(11, window.size_px / 38)
        return draw_texts(panel, [Text((8, 7), painter.title, size, INK, "lt", True, (255, 255, 255))])

    def title(self, sample: BEVDataSample, predicted: DrawnBoxes | None) -> str:
        """Scene, time and what the boxes are."""
        info = sample.metainfo
        parts = [str(info.get("scene_name", info.get("token", "")))]
        if info.get("timestamp_s"):
            moment = datetime.fromtimestamp(info["timestamp_s"], timezone.utc)
            parts.append(moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 100000} UTC")
        if predicted is None:
            parts.append("ground truth")
        else:
            parts.append(f"{len(predicted)} boxes with score \N{GREATER-THAN OR EQUAL TO} {self.score_thr:g}")
        return "   \N{MIDDLE DOT}   ".join(part for part in parts if part)


def draw_sample(sample: BEVDataSample, views: Sequence[CameraView], **options) -> np.ndarray:
    """The picture of one sample with a :class:`SampleVisualizer` of the given options: (H, W, 3) uint8 RGB."""
    return SampleVisualizer(**options).draw(sample, views)


def panels_in_a_row(count: int) -> int:
    """How many of ``count`` panels stand side by side below the cameras: all up to four, else rows of three."""
    return max(1, count) if count <= 4 else 3


def forward_bearing(views: Sequence[CameraView]) -> float:
    """Where straight ahead lies in the BEV frame, radians counter-clockwise from +x, to a quarter turn.

    Taken from the camera named CAM_FRONT; without one, nuScenes' +y.
    """
    for view in views:
        if view.name == "CAM_FRONT":
            return float(np.round(view.bearing / (np.pi / 2)) * np.pi / 2)
    return np.pi / 2


def _joined(images: Sequence[np.ndarray], axis: int, centred: bool = False) -> np.ndarray:
    across = 1 - axis
    extent = max(image.shape[across] for image in images)
    padded = []
    for index, image in enumerate(images):
        pad = [[0, 0], [0, 0], [0, 0]]
        room = extent - image.shape[across]
        pad[across] = [room // 2, room - room // 2] if centred else [0, room]
        pad[axis][0] = _GAP if index else 0
        padded.append(np.pad(image, pad, constant_values=BACKGROUND[0]))
    return np.concatenate(padded, axis=axis)


def _title(text: str, width: int) -> np.ndarray:
    size = max(12, round(width / 110))
    band = np.full((round(size * 1.5), width, 3), BACKGROUND, np.uint8)
    return draw_texts(band, [Text((2, band.shape[0] / 2), text, size, INK, "lm", bold=True)])


def _legend(names: Sequence[str], width: int, with_truth: bool) -> np.ndarray:
    order = {name: place for place, name in enumerate((*CLASS_COLORS, *LAYER_COLORS))}
    shown = sorted(set(names), key=lambda name: (order.get(name, len(order)), name))
    entries = [(pretty(name), legend_color_of(name)) for name in shown]
    entries += [("ground truth (outline)", TRUTH)] if with_truth else []
    size = max(10, round(width / 150))
    spots, left, line = [], 2.0, 0
    for label, color in entries:
        need = size * 1.5 + text_width(label, size) + size * 1.6
        if left + need > width and left > 2:
            left, line = 2.0, line + 1
        spots.append((left, line, label, color))
        left += need
    pitch = round(size * 1.9)
    band = np.full((pitch * (line + 1), width, 3), BACKGROUND, np.uint8)
    texts = []
    for left, line, label, color in spots:
        middle = pitch * (line + 0.5)
        square = np.array([[0, -0.5], [1, -0.5], [1, 0.5], [0, 0.5]]) * size + (left, middle)
        draw_polygon(band, square, color, 1.0)
        texts.append(Text((left + size * 1.5, middle), label, size, INK, "lm"))
    return draw_texts(band, texts)

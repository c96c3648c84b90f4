"""Poses from above as skeletons, and keypoints in the cameras' images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from bevstack.geometry.keypoints import KEYPOINT_NAMES
from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.cameras import CameraView
from bevstack.visualization.drawing import Color, draw_outline, draw_polygon, draw_segment
from bevstack.visualization.painters import CameraPainter, PanelPainter, true_boxes
from bevstack.visualization.palette import INK, color_of

_CORNERS = [KEYPOINT_NAMES.index(name) for name in ("front_left", "front_right", "rear_right", "rear_left")]
_CENTRE, _FRONT = KEYPOINT_NAMES.index("centre"), KEYPOINT_NAMES.index("front")


def draw_dot(image: np.ndarray, point: np.ndarray, radius_px: float, color: Color) -> None:
    """A filled circle with a dark rim, in place; (2,) continuous pixel coordinates, anywhere."""
    if not (np.abs(point) < 1 << 15).all():
        return
    center = np.round((np.asarray(point, float) - 0.5) * 16).astype(int).tolist()
    cv2.circle(image, center, round((radius_px + max(0.6, radius_px / 4)) * 16), INK, -1, cv2.LINE_AA, 4)
    cv2.circle(image, center, round(radius_px * 16), color, -1, cv2.LINE_AA, 4)


@VISUALIZERS.register_module()
class PosePainter(PanelPainter):
    """Predicted poses from above: the corners' polygon and the line to the front in the class's colour, keypoints as
    dots in their own; true boxes as grey outlines below them.

    Args:
        score_thr: poses with a lower score are left out.
        show_truth: whether to draw the grey outlines.
        title: written on the panel.
    """

    fields = ("pred_keypoints",)

    def __init__(self, score_thr: float = 0.3, show_truth: bool = True, title: str = "poses") -> None:
        self.score_thr, self.show_truth, self.title = score_thr, show_truth, title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the window's shape."""
        truth = true_boxes(sample) if self.show_truth else None
        image = draw_bev(window, DrawnBoxes(np.zeros((0, 9)), ()), truth)
        predicted, classes = sample.pred_keypoints, sample.metainfo["classes"]
        scores = predicted.scores.detach().cpu().numpy()
        points = window.pixels(predicted.keypoints.detach().cpu().double().numpy())
        labels = predicted.labels.detach().cpu().tolist()
        line = max(1.0, window.size_px / 420)
        for index in np.argsort(scores, kind="stable"):
            if scores[index] < self.score_thr:
                continue
            color, corners = color_of(classes[labels[index]]), points[index, _CORNERS]
            draw_polygon(image, corners, color, 0.25)
            draw_outline(image, corners, color, line)
            draw_segment(image, points[index, _CENTRE], points[index, _FRONT], color, line)
            for name, point in zip(KEYPOINT_NAMES, points[index], strict=True):
                draw_dot(image, point, window.size_px / 450, color_of(name))
        return image

    def legend(self, sample: BEVDataSample) -> Sequence[str]:
        """The keypoints' names, each with the colour of its dot."""
        return KEYPOINT_NAMES


@VISUALIZERS.register_module()
class ImageKeypointPainter(CameraPainter):
    """Keypoints that an image head has predicted (``pred_image_keypoints``), as dots on the cameras' images.

    Args:
        score_thr: points with a lower score are left out.
    """

    fields = ("pred_image_keypoints",)

    def __init__(self, score_thr: float = 0.3) -> None:
        self.score_thr = score_thr

    def paint(self, sample: BEVDataSample, views: Sequence[CameraView], shown_height_px: float) -> list[CameraView]:
        """The views with dots where each camera's rays meet its image, whatever its size."""
        found = sample.pred_image_keypoints
        rays, scores = (found[name].detach().cpu().double().numpy() for name in ("rays", "scores"))
        cameras, kinds = (found[name].detach().cpu().numpy() for name in ("cameras", "kinds"))
        painted = []
        for index, view in enumerate(views):
            image = np.ascontiguousarray(view.image).copy()
            radius = 2.4 * image.shape[0] / shown_height_px
            for point in np.flatnonzero((cameras == index) & (scores >= self.score_thr)):
                place = np.asarray(view.pixels_from_camera)[:3, :3] @ [*rays[point], 1.0]
                draw_dot(image, place[:2] / place[2], radius, color_of(KEYPOINT_NAMES[kinds[point]]))
            painted.append(replace(view, image=image))
        return painted

    def legend(self, sample: BEVDataSample) -> Sequence[str]:
        """The keypoints' names, each with the colour of its dot."""
        return KEYPOINT_NAMES

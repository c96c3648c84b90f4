"""A panel of what kind of scene it is: a bar for each class of each task."""

from __future__ import annotations

import cv2
import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.visualization.bev import BEVWindow
from bevstack.visualization.painters import PanelPainter
from bevstack.visualization.palette import INK

_SIDE_PX, _FAINT, _OTHER, _RIGHT, _WRONG = 640, (222, 225, 228), (150, 156, 163), (38, 139, 80), (200, 60, 50)


@VISUALIZERS.register_module()
class ScenePainter(PanelPainter):
    """Probabilities of ``pred_scene`` as bars; the likeliest is green, or red where ``gt_scene`` says otherwise.

    Args:
        title: written on the panel.
    """

    fields = ("pred_scene",)

    def __init__(self, title: str = "scene") -> None:
        self.title = title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(640, 640, 3) uint8 RGB, whatever the window."""
        image = np.full((_SIDE_PX, _SIDE_PX, 3), 255, np.uint8)
        truth = sample.gt_scene if "gt_scene" in sample else {}
        rows = sum(len(answer["names"]) for answer in sample.pred_scene.values()) + 2 * len(sample.pred_scene)
        pitch = min(44, (_SIDE_PX - 70) // rows)
        middle, size = 60 + pitch // 2, pitch / 62

        def write(text: str, left: int, color: tuple[int, int, int], bold: bool = False) -> None:
            place = (left, middle + pitch // 6)
            cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, size, color, 1 + bold, cv2.LINE_AA)

        for task, answer in sample.pred_scene.items():
            true, best = truth.get(task), int(answer["probabilities"].argmax())
            right = true in (None, answer["names"][best])
            write(task, 16, INK, bold=True)
            write("" if true is None else f"truth: {true}", 210, _RIGHT if right else _WRONG)
            for index, (name, probability) in enumerate(
                zip(answer["names"], answer["probabilities"].tolist(), strict=True)
            ):
                middle += pitch
                color = (_RIGHT if right else _WRONG) if index == best else _OTHER
                low, high = middle - pitch // 3, middle + pitch // 3
                cv2.rectangle(image, (345, low), (545, high), _FAINT, -1)
                cv2.rectangle(image, (345, low), (345 + round(200 * probability), high), color, -1)
                write(name, 32, INK, bold=index == best)
                write(f"{100 * probability:.0f} %", 556, INK, bold=index == best)
            middle += 2 * pitch
        return image

"""Painters: each makes one panel of a sample's picture. A project adds its own by registering a :class:`BEVPainter`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.drawing import Text, draw_texts, fitted
from bevstack.visualization.palette import INK


class BEVPainter(ABC):
    """One panel beside the cameras.

    Subclass it, register it in ``bevstack.registry.VISUALIZERS`` and name it among the painters of
    :class:`SampleVisualizer` in the config. A head may also simply have a method ``paint(sample) -> (H, W, 3) uint8
    RGB``; the visualisation tool then shows it as a panel of the head's name.
    """

    @abstractmethod
    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """A picture of the sample.

        Args:
            sample: labels, predictions and metainfo of one keyframe.
            window: extent, size and orientation of the other panels; a painter may use another size.

        Returns:
            (H, W, 3) uint8 RGB, or None where the sample has nothing of the kind.
        """

    def legend(self, sample: BEVDataSample) -> Sequence[str]:
        """Names whose colours the panel uses, beside the classes of the boxes."""
        return ()


def _rasters(sample: BEVDataSample, field: str) -> list[BEVRaster]:
    return list(sample.get(field, {}).values()) if field in sample else []


def predicted_boxes(sample: BEVDataSample, score_thr: float) -> DrawnBoxes | None:
    """Predicted boxes of at least ``score_thr``; None where nothing was predicted."""
    if "pred_instances_3d" not in sample:
        return None
    return DrawnBoxes.of_instances(sample.pred_instances_3d, sample.metainfo["classes"], score_thr)


def true_boxes(sample: BEVDataSample) -> DrawnBoxes | None:
    """Ground-truth boxes; None where there are no labels."""
    if "gt_instances_3d" not in sample:
        return None
    return DrawnBoxes.of_instances(sample.gt_instances_3d, sample.metainfo["classes"])


def _layer_names(rasters: Sequence[BEVRaster]) -> list[str]:
    return [name for raster in rasters for name in raster.classes]


@VISUALIZERS.register_module()
class PredictionPainter(BEVPainter):
    """Predicted masks and boxes from above, true boxes as grey outlines below them.

    Args:
        score_thr: boxes with a lower score are left out.
        show_truth: whether to draw the grey outlines.
        title: written on the panel.
    """

    def __init__(self, score_thr: float = 0.3, show_truth: bool = True, title: str = "prediction") -> None:
        self.score_thr, self.show_truth, self.title = score_thr, show_truth, title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """The panel, or None for a sample without any prediction."""
        boxes, rasters = predicted_boxes(sample, self.score_thr), _rasters(sample, "pred_rasters")
        if boxes is None and not rasters:
            return None
        truth = true_boxes(sample) if self.show_truth and boxes is not None else None
        return draw_bev(window, boxes, truth, rasters, self.title)

    def legend(self, sample: BEVDataSample) -> list[str]:
        """The predicted layers."""
        return _layer_names(_rasters(sample, "pred_rasters"))


@VISUALIZERS.register_module()
class TruthPainter(BEVPainter):
    """True masks and boxes from above.

    Args:
        title: written on the panel.
    """

    def __init__(self, title: str = "ground truth") -> None:
        self.title = title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """The panel, or None for a sample without labels."""
        boxes, rasters = true_boxes(sample), _rasters(sample, "gt_rasters")
        if boxes is not None:  # a mask of the same boxes would only dull their colours
            rasters = [raster for raster in rasters if raster.classes != ("vehicle",)]
        return None if boxes is None and not rasters else draw_bev(window, None, boxes, rasters, self.title)

    def legend(self, sample: BEVDataSample) -> list[str]:
        """The true layers."""
        return _layer_names(_rasters(sample, "gt_rasters"))


class HeadPainter(BEVPainter):
    """The panel of a head that has a method ``paint(sample) -> (H, W, 3) uint8 RGB``, under the head's name.

    Args:
        name: of the head, written on the panel.
        head: the head.
    """

    def __init__(self, name: str, head: Any) -> None:
        self.name, self.head = name, head

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """The head's picture with its name; None where the head has nothing to show.

        Raises:
            TypeError: the head's picture is not an (H, W, 3) uint8 array.
        """
        image = self.head.paint(sample)
        if image is None:
            return None
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            found = f"{getattr(image, 'dtype', type(image).__name__)} {getattr(image, 'shape', '')}"
            raise TypeError(f"head '{self.name}': paint() must return an (H, W, 3) uint8 array, not {found}")
        height = window.shape[0]
        image = fitted(image, height, round(image.shape[1] * height / image.shape[0]))
        return draw_texts(image, [Text((8, 7), self.name, max(11, height / 38), INK, "lt", True, (255, 255, 255))])

"""Painters: each draws something of a sample. The one way to add anything to a sample's picture.

A painter names the fields of a sample that it draws. Once registered in :data:`bevstack.registry.VISUALIZERS` it is in
the picture of every sample that has one of them, without being named anywhere; a config names painters only to choose
them, their order or their options (:class:`bevstack.visualization.SampleVisualizer`).
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.cameras import CameraView


class Painter:
    """What every painter is: subclass :class:`PanelPainter` or :class:`CameraPainter`.

    Attributes:
        fields: fields of a sample, parts of one after a dot (``pred_instances_3d.attribute_names``). There is something
            to draw where a sample has one of them. A painter without fields draws always, but only where it is named.
    """

    fields: tuple[str, ...] = ()

    def draws(self, sample: BEVDataSample) -> bool:
        """Whether the sample has something of the kind."""
        return not self.fields or any(_has(sample, field) for field in self.fields)

    def legend(self, sample: BEVDataSample) -> Sequence[str]:
        """Names whose colours the painter uses, beside the classes of the boxes; of a sample that it draws."""
        return ()


class PanelPainter(Painter, ABC):
    """Makes a panel beside the cameras.

    Attributes:
        title: written on the panel.
    """

    title: str = ""

    @abstractmethod
    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """The panel, without its title.

        Args:
            sample: labels, predictions and metainfo of one keyframe; has one of the painter's fields.
            window: extent, size and orientation of the other panels; a painter may use another size.

        Returns:
            (H, W, 3) uint8 RGB, or None where there is nothing to show after all.
        """


class CameraPainter(Painter, ABC):
    """Draws on the cameras' images, below the boxes."""

    @abstractmethod
    def paint(self, sample: BEVDataSample, views: Sequence[CameraView], shown_height_px: float) -> Sequence[CameraView]:
        """The views with something on their images.

        Args:
            sample: labels, predictions and metainfo of one keyframe; has one of the painter's fields.
            views: of the cameras, in the rig's order, images (H, W, 3) of any size; they are not changed.
            shown_height_px: how high an image will be shown, so that strokes keep their size whatever the image's.
        """


def build_painter(painter: Painter | Mapping[str, Any], score_thr: float) -> Painter:
    """A painter as it is, or from its config; one that takes a ``score_thr`` gets this one unless it has its own."""
    if isinstance(painter, Painter):
        return painter
    settings = dict(painter)
    kind = settings["type"]
    kind = VISUALIZERS.get(kind) if isinstance(kind, str) else kind
    if inspect.isclass(kind) and "score_thr" in inspect.signature(kind).parameters:
        settings.setdefault("score_thr", score_thr)
    return VISUALIZERS.build(settings)


def registered_painters(score_thr: float) -> list[Painter]:
    """One of every registered painter that has fields, in the order of registration; for a score see above."""
    kinds = [kind for kind in VISUALIZERS.module_dict.values() if inspect.isclass(kind) and issubclass(kind, Painter)]
    return [build_painter({"type": kind}, score_thr) for kind in dict.fromkeys(kinds) if kind.fields]


def _has(sample: Any, field: str) -> bool:
    """Whether ``a.b`` is there: a field of a sample, or a part of one."""
    name, _, part = field.partition(".")
    return name in sample and (not part or _has(sample.get(name), part))


def rasters_of(sample: BEVDataSample, field: str) -> list[BEVRaster]:
    """The rasters of a sample's field, ``pred_rasters`` or ``gt_rasters``; none where it has no such field."""
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


def identities_of(instances: Any) -> list[str] | None:
    """Who each box is, "" where that is not known: of its track where it was tracked, else of the labels; None where
    nothing says so."""
    for field in ("track_ids", "instance_ids"):
        if field in instances:
            values = instances[field]
            listed = values.tolist() if hasattr(values, "tolist") else list(values)
            return ["" if str(value) in ("-1", "") else str(value) for value in listed]
    return None


def _layer_names(rasters: Sequence[BEVRaster]) -> list[str]:
    return [name for raster in rasters for name in raster.classes]


@VISUALIZERS.register_module()
class PredictionPainter(PanelPainter):
    """Predicted masks and boxes from above, true boxes as grey outlines below them.

    Args:
        score_thr: boxes with a lower score are left out.
        show_truth: whether to draw the grey outlines.
        title: written on the panel.
    """

    fields = ("pred_instances_3d", "pred_rasters")

    def __init__(self, score_thr: float = 0.3, show_truth: bool = True, title: str = "prediction") -> None:
        self.score_thr, self.show_truth, self.title = score_thr, show_truth, title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """(height, width, 3) uint8 RGB of the window's shape; None where neither boxes nor any mask was predicted."""
        boxes, rasters = predicted_boxes(sample, self.score_thr), rasters_of(sample, "pred_rasters")
        if boxes is None and not rasters:
            return None
        truth = true_boxes(sample) if self.show_truth and boxes is not None else None
        return draw_bev(window, boxes, truth, rasters)

    def legend(self, sample: BEVDataSample) -> list[str]:
        """The names of the predicted layers."""
        return _layer_names(rasters_of(sample, "pred_rasters"))


@VISUALIZERS.register_module()
class TruthPainter(PanelPainter):
    """True masks and boxes from above.

    Args:
        title: written on the panel.
    """

    fields = ("gt_instances_3d", "gt_rasters")

    def __init__(self, title: str = "ground truth") -> None:
        self.title = title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray | None:
        """(height, width, 3) uint8 RGB of the window's shape; None where there are neither boxes nor any mask."""
        boxes, rasters = true_boxes(sample), rasters_of(sample, "gt_rasters")
        if boxes is not None:  # a mask of the same boxes would only dull their colours
            rasters = [raster for raster in rasters if raster.classes != ("vehicle",)]
        return None if boxes is None and not rasters else draw_bev(window, None, boxes, rasters)

    def legend(self, sample: BEVDataSample) -> list[str]:
        """The names of the true layers."""
        return _layer_names(rasters_of(sample, "gt_rasters"))

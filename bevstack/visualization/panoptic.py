"""The panoptic map from above: each instance in its own shade, stuff in its layer's colour."""

from __future__ import annotations

import colorsys

import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample, BEVRaster, PanopticMap
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.drawing import Color
from bevstack.visualization.painters import PanelPainter
from bevstack.visualization.palette import GROUND, color_of, legend_color_of

_GOLDEN = 0.6180339887498949


def instance_color(name: str, instance: int) -> Color:
    """A shade of a class's colour: hue within 6 degrees, lighter or darker; successive numbers differ clearly."""
    hue, lightness, saturation = colorsys.rgb_to_hls(*(value / 255 for value in color_of(name)))
    place = instance * _GOLDEN % 1 - 0.5
    lightness = min(0.6, max(0.45, lightness)) + 0.32 * place
    hue = (hue + (instance * _GOLDEN * _GOLDEN % 1 - 0.5) / 30) % 1
    red, green, blue = (round(255 * value) for value in colorsys.hls_to_rgb(hue, lightness, saturation))
    return red, green, blue


def draw_panoptic(window: BEVWindow, panoptic: PanopticMap) -> np.ndarray:
    """The segments of a panoptic map, with range rings, ego and scale.

    Args:
        window: extent and size of the picture.
        panoptic: on any grid.

    Returns:
        (height, width, 3) uint8 RGB; forward is up.
    """
    names = [panoptic.classes[label] for label in panoptic.labels.tolist()]
    raster = BEVRaster(panoptic.masks(), tuple(names), panoptic.grid)
    things = zip(panoptic.is_thing.tolist(), panoptic.instance_ids.tolist(), strict=True)
    # Segments never overlap, so that soft edges add up: painted one over another, the ground would shine through seams.
    colors, covered = np.zeros((*window.shape, 3), np.float32), np.zeros((*window.shape, 1), np.float32)
    for index, (name, (is_thing, instance)) in enumerate(zip(names, things, strict=True)):
        cover = window.layer(raster, index)[..., None]
        colors += cover * np.array(instance_color(name, instance) if is_thing else legend_color_of(name), np.float32)
        covered += cover
    image = colors / np.maximum(covered, 1) + np.maximum(1 - covered, 0) * np.array(GROUND, np.float32)
    # Rings, ego and letters as on bare ground, multiplied with what lies below.
    image *= np.minimum(draw_bev(window) / np.array(GROUND, np.float32), 1)
    return np.round(image).astype(np.uint8)


@VISUALIZERS.register_module()
class PanopticPainter(PanelPainter):
    """A sample's panoptic map.

    Args:
        field: of the sample, ``pred_panoptic`` or ``gt_panoptic``.
        title: written on the panel.
    """

    fields = ("pred_panoptic",)

    def __init__(self, field: str = "pred_panoptic", title: str | None = None) -> None:
        self.fields = (field,)
        self.title = title or {"pred_panoptic": "panoptic", "gt_panoptic": "panoptic ground truth"}.get(field, field)

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the window's shape."""
        return draw_panoptic(window, sample.get(self.fields[0]))

    def legend(self, sample: BEVDataSample) -> list[str]:
        """The classes of the map, each with the colour of its segments."""
        return list(sample.get(self.fields[0]).classes)

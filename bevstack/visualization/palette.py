"""Colours of classes and map layers, RGB.

Layers follow the nuScenes devkit's map colours; unknown names get a steady hue.
"""

from __future__ import annotations

import colorsys
import zlib

BACKGROUND = (255, 255, 255)
GROUND = (246, 246, 243)
INK = (33, 37, 41)
FAINT = (173, 178, 184)
TRUTH = (90, 96, 104)

CLASS_COLORS = {
    "car": (255, 140, 0),
    "truck": (214, 39, 40),
    "construction_vehicle": (140, 86, 75),
    "bus": (227, 65, 150),
    "trailer": (148, 82, 200),
    "barrier": (88, 110, 117),
    "motorcycle": (23, 160, 170),
    "bicycle": (38, 166, 91),
    "pedestrian": (31, 90, 230),
    "traffic_cone": (190, 160, 0),
}
LAYER_COLORS = {
    "drivable_area": (166, 206, 227),
    "carpark_area": (255, 127, 0),
    "walkway": (227, 26, 28),
    "ped_crossing": (240, 98, 104),
    "stop_line": (253, 191, 111),
    "divider": (106, 61, 154),
    "vehicle": (52, 73, 94),
}
KEYPOINT_COLORS = {
    "centre": (120, 230, 255),
    "front_left": (0, 190, 120),
    "front_right": (20, 110, 255),
    "rear_right": (160, 60, 220),
    "rear_left": (240, 190, 0),
    "front": (235, 30, 60),
}
LAYER_ALPHA = {
    "drivable_area": 0.7,
    "carpark_area": 0.35,
    "walkway": 0.22,
    "ped_crossing": 0.8,
    "divider": 0.6,
    "vehicle": 0.45,
}
"""How strongly a layer covers what lies below; any other layer 0.9. Also the order of painting, large areas first."""


def color_of(name: str) -> tuple[int, int, int]:
    """RGB of a detection class, map layer or keypoint."""
    known = CLASS_COLORS.get(name) or LAYER_COLORS.get(name) or KEYPOINT_COLORS.get(name)
    if known is not None:
        return known
    hue = zlib.crc32(name.encode()) % 360 / 360
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.75, 0.8))
    return red, green, blue


def legend_color_of(name: str) -> tuple[int, int, int]:
    """RGB of a class or layer as it looks in a picture: layers thinned over the bare ground."""
    alpha = LAYER_ALPHA.get(name, 1.0)
    pairs = zip(color_of(name), GROUND, strict=True)
    red, green, blue = (round(alpha * above + (1 - alpha) * below) for above, below in pairs)
    return red, green, blue


def pretty(name: str) -> str:
    """A class name as people write it: ``traffic_cone`` -> ``traffic cone``."""
    return name.replace("_", " ")


FIXED_COLORS = (
    *(BACKGROUND, GROUND, INK, FAINT, TRUTH),
    *CLASS_COLORS.values(),
    *KEYPOINT_COLORS.values(),
    *map(legend_color_of, LAYER_COLORS),
)
"""Every colour that pictures use in flat areas."""

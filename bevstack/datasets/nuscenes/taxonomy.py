"""nuScenes' own names, each list once: detection classes, vehicles, cameras, map layers.

Another format brings its own; nothing below :mod:`bevstack.datasets.nuscenes` is built on these.
"""

from bevstack.structures.behaviour import BEHAVIOURS

DETECTION_CLASSES = (
    "car",
    "truck",
    "construction_vehicle",
    "bus",
    "trailer",
    "barrier",
    "motorcycle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
)
"""The ten classes of the detection task, in the order of the published BEVFormer's labels."""

VEHICLE_CLASSES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")
"""Detection classes of nuScenes' ``vehicle.*`` categories, the "vehicle" of Lift-Splat-Shoot and PointBeV."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""The six cameras in the order of the published BEVFormer's camera embeddings."""

MAP_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
"""Layers of the map raster; ``divider`` is road_divider and lane_divider together."""

ATTRIBUTES = BEHAVIOURS
"""The eight attributes of boxes; which class may have which: :mod:`bevstack.structures.behaviour`."""

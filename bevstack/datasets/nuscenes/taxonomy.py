"""nuScenes' own names, each list once: classes, vehicles, cameras, map layers, attributes, words for scenes.

Another format brings its own (:class:`bevstack.datasets.base.Taxonomy`); only this room and nuScenes' own metrics are
built on these. Configs cannot import them and repeat the classes in ``configs/_base_/nuscenes_names.py``; a test holds
them together.
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

_CLASS_OF_CATEGORY = {
    "movable_object.barrier": "barrier",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}


def detection_class(category: str) -> str:
    """The class of the detection task that a category belongs to, "" for none.

    nuScenes' own mapping, and a category that is called as a class (``car``) is of that class. A test holds the mapping
    to the devkit's.
    """
    return category if category in DETECTION_CLASSES else _CLASS_OF_CATEGORY.get(category, "")


def scored_category(category: str) -> str:
    """The name under which the devkit scores a category: itself, or for one that is called as a class the first of
    nuScenes' categories of that class."""
    if category not in DETECTION_CLASSES:
        return category
    return next(name for name, label in _CLASS_OF_CATEGORY.items() if label == category)


VEHICLE_CLASSES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle")
"""Detection classes of nuScenes' ``vehicle.*`` categories, the "vehicle" of Lift-Splat-Shoot and PointBeV."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""The six cameras in the order of the published BEVFormer's camera embeddings."""

MAP_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider")
"""Layers of the map raster; ``divider`` is road_divider and lane_divider together."""

STUFF_PRIORITY = ("divider", "stop_line", "ped_crossing", "carpark_area", "walkway", "drivable_area")
"""Map layers as stuff: what is thin or painted upon another layer comes before what it lies on."""

ATTRIBUTES = BEHAVIOURS
"""The eight attributes of boxes; which class may have which: :mod:`bevstack.structures.behaviour`."""

ATTRIBUTE_AT_REST = {
    "car": "vehicle.parked",
    "truck": "vehicle.parked",
    "construction_vehicle": "vehicle.parked",
    "bus": "vehicle.stopped",
    "trailer": "vehicle.parked",
    "motorcycle": "cycle.without_rider",
    "bicycle": "cycle.without_rider",
    "pedestrian": "pedestrian.standing",
}
"""The usual attribute of a class that stands still; classes that are not there have none."""

ATTRIBUTE_MOVING = {
    "car": "vehicle.moving",
    "truck": "vehicle.moving",
    "construction_vehicle": "vehicle.moving",
    "bus": "vehicle.moving",
    "trailer": "vehicle.moving",
    "motorcycle": "cycle.with_rider",
    "bicycle": "cycle.with_rider",
    "pedestrian": "pedestrian.moving",
}
"""The usual attribute of a class that moves."""

SCENE_RULES = {
    "time": {"night": r"\bnight", "day": ""},
    "weather": {"rain": r"\brain", "dry": ""},
}
"""Time of day and weather by the words of a scene's description.

nuScenes has no field for either. Its makers search the description for the words (nuscenes-devkit, issue 124), and the
published splits by day, night and rain do the same: a scene is at night where a word begins with "night", rainy where
one begins with "rain", in any case of letters; else by day, and dry. "After rain" thus counts as rain: the ground is
wet. "Train" does not.
"""

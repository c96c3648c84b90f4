"""The rows that every dataset shares: categories, attributes, visibility levels, sensors (nuScenes' own names)."""

from __future__ import annotations

from collections.abc import Sequence

from bevstack.synthetic.cameras import LIDAR_NAME
from bevstack.synthetic.recorder import token_of

CATEGORIES = (
    "animal",
    "human.pedestrian.adult",
    "human.pedestrian.child",
    "human.pedestrian.construction_worker",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.barrier",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "movable_object.trafficcone",
    "static_object.bicycle_rack",
    "vehicle.bicycle",
    "vehicle.bus.bendy",
    "vehicle.bus.rigid",
    "vehicle.car",
    "vehicle.construction",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.motorcycle",
    "vehicle.trailer",
    "vehicle.truck",
)
ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = (("1", "v0-40", 0, 40), ("2", "v40-60", 40, 60), ("3", "v60-80", 60, 80), ("4", "v80-100", 80, 100))


def fixed_tables(cameras: Sequence[str]) -> dict[str, list[dict]]:
    """category, attribute, visibility and sensor, with tokens made of the names, ``cameras`` among them."""
    return {
        "category": [
            {"token": token_of("category", name), "name": name, "description": name.split(".")[-1].replace("_", " ")}
            for name in CATEGORIES
        ],
        "attribute": [
            {
                "token": token_of("attribute", name),
                "name": name,
                "description": name.replace(".", " is ").replace("_", " "),
            }
            for name in ATTRIBUTES
        ],
        "visibility": [
            {"token": token, "level": level, "description": f"visibility of whole object is between {low} and {high}%"}
            for token, level, low, high in VISIBILITY
        ],
        "sensor": [
            {
                "token": token_of("sensor", name),
                "channel": name,
                "modality": "lidar" if name == LIDAR_NAME else "camera",
            }
            for name in (*cameras, LIDAR_NAME)
        ],
    }

"""What agents can be doing: nuScenes' attributes, and which of them a class may have.

Source: nuScenes' detection task, attribute table (https://www.nuscenes.org/object-detection).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BehaviourGroup:
    """Classes that share their possible attributes; an object has one of these at a time, or none."""

    classes: tuple[str, ...]
    attributes: tuple[str, ...]


BEHAVIOUR_GROUPS = {
    "vehicle": BehaviourGroup(
        ("car", "truck", "construction_vehicle", "bus", "trailer"),
        ("vehicle.moving", "vehicle.stopped", "vehicle.parked"),
    ),
    "pedestrian": BehaviourGroup(
        ("pedestrian",), ("pedestrian.moving", "pedestrian.standing", "pedestrian.sitting_lying_down")
    ),
    "cycle": BehaviourGroup(("motorcycle", "bicycle"), ("cycle.with_rider", "cycle.without_rider")),
}
"""By name; classes in none of them (barrier, traffic_cone) have no attributes."""

BEHAVIOURS = tuple(name for group in BEHAVIOUR_GROUPS.values() for name in group.attributes)
"""The eight attributes, group by group."""


def behaviours_of(class_name: str) -> tuple[str, ...]:
    """The attributes that a class may have; none for a class outside the groups."""
    for group in BEHAVIOUR_GROUPS.values():
        if class_name in group.classes:
            return group.attributes
    return ()

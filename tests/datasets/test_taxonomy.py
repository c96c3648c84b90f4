"""nuScenes' names stand once; what must repeat them agrees, and they are the devkit's own."""

from __future__ import annotations

import runpy
from pathlib import Path

from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.color_map import get_colormap

from bevstack.datasets.nuscenes import taxonomy
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.structures.behaviour import BEHAVIOUR_GROUPS, behaviours_of
from bevstack.synthetic.cameras import CAMERA_NAMES
from bevstack.visualization.palette import CLASS_COLORS, LAYER_COLORS

ROOT = Path(__file__).resolve().parents[2]


def test_the_devkits_names():
    # Expected: the devkit's evaluation; vehicles are the classes of its vehicle.* categories.
    assert set(taxonomy.DETECTION_CLASSES) == set(config_factory("detection_cvpr_2019").class_range)
    assert set(taxonomy.ATTRIBUTES) == set(ATTRIBUTE_NAMES)
    detected = {name: category_to_detection_name(name) for name in get_colormap() if name.startswith("vehicle.")}
    assert set(taxonomy.VEHICLE_CLASSES) == set(detected.values()) - {None}
    for table in (taxonomy.ATTRIBUTE_AT_REST, taxonomy.ATTRIBUTE_MOVING):
        assert all(attribute in behaviours_of(name) for name, attribute in table.items())
        assert set(table) == {name for name in taxonomy.DETECTION_CLASSES if behaviours_of(name)}


def test_every_list_names_each_once_and_nothing_unknown():
    # Expected: the taxonomy's longest list of its kind.
    for names in (taxonomy.DETECTION_CLASSES, taxonomy.CAMERAS, taxonomy.MAP_LAYERS, taxonomy.ATTRIBUTES):
        assert len(set(names)) == len(names)
    assert sorted(taxonomy.STUFF_PRIORITY) == sorted(taxonomy.MAP_LAYERS)
    assert NuScenesBEVDataset.taxonomy.object_layers == {"vehicle": taxonomy.VEHICLE_CLASSES}
    assert tuple(CAMERA_NAMES) == taxonomy.CAMERAS
    assert set(CLASS_COLORS) == set(taxonomy.DETECTION_CLASSES)
    assert set(LAYER_COLORS) == {*taxonomy.MAP_LAYERS, "vehicle"}
    assert {name for group in BEHAVIOUR_GROUPS.values() for name in group.classes} < set(taxonomy.DETECTION_CLASSES)


def test_configs_name_them_in_one_file():
    # Expected: that file agrees with the taxonomy, and no other one spells out a class that no config takes alone.
    names = runpy.run_path(str(ROOT / "configs" / "_base_" / "nuscenes_names.py"))
    assert names["classes"] == taxonomy.DETECTION_CLASSES
    assert names["vehicle_classes"] == taxonomy.VEHICLE_CLASSES
    assert names["map_layers"] == taxonomy.MAP_LAYERS
    spelled = [path.name for path in (ROOT / "configs").rglob("*.py") if "construction_vehicle" in path.read_text()]
    assert spelled == ["nuscenes_names.py"]


def test_no_other_list_in_the_package():
    # Expected: where names stand beside something of their own (colours, groups of attributes, what is drawn), not as
    # a list; "construction_vehicle" tells, which nobody names by itself.
    keyed = {
        "datasets/nuscenes/taxonomy.py",
        "structures/behaviour.py",
        "visualization/palette.py",
        "evaluation/drawn_scores.py",  # which kinds are vehicles
    }
    spelled = {
        str(path.relative_to(ROOT / "bevstack"))
        for path in (ROOT / "bevstack").rglob("*.py")
        if '"construction_vehicle"' in path.read_text() and "synthetic" not in path.parts
    }
    assert spelled == keyed

"""Time, weather and place out of nuScenes' words."""

from __future__ import annotations

import pytest

from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.datasets.nuscenes.table_files import read_json
from bevstack.datasets.nuscenes.taxonomy import SCENE_RULES
from bevstack.datasets.transforms import LoadSceneLabels
from bevstack.datasets.transforms.scene_labels import scene_conditions
from bevstack.errors import InputError
from tests.datasets.tables import LOCATION, VERSION, build_root, write_json


@pytest.mark.parametrize(
    ("description", "time", "weather"),
    [  # in the manner of nuScenes' descriptions; expected: what a reader says
        ("Parked truck, construction, intersection, turn left", "day", "dry"),
        ("Night, big street, bus stop, high speed", "night", "dry"),
        ("Rain, many pedestrians, turn right", "day", "rain"),
        ("night, heavy RAIN, lightning", "night", "rain"),
        ("Wait at junction, after rain", "day", "rain"),
        ("Rainy, passing a nightclub at nighttime", "night", "rain"),
        ("Train tracks, drain, terrain, midnight blue car", "day", "dry"),
        ("", "day", "dry"),
    ],
)
def test_words(description, time, weather):
    assert scene_conditions(description, SCENE_RULES) == {"time": time, "weather": weather}


def test_from_the_tables_to_the_sample(tmp_path):
    # Expected: what is written into the table of scenes and of logs here.
    root = build_root(tmp_path / "root")
    table = root / VERSION / "scene.json"
    scenes = read_json(table)
    scenes[0]["description"], scenes[1]["description"] = "Night, parked cars", "Rain, turn left"
    write_json(table, scenes)
    write_index(root, VERSION, maps=False, progress=lambda line: None)
    expected = {
        "tiny_train": {"time": "night", "weather": "dry", "location": LOCATION},
        "tiny_val": {"time": "day", "weather": "rain", "location": LOCATION},
    }
    for split, labels in expected.items():
        dataset = NuScenesBEVDataset(root, VERSION, split, [dict(type="LoadSceneLabels")], test_mode=True)
        assert all(dataset[i]["scene_labels"] == labels for i in range(len(dataset)))
        packed = NuScenesBEVDataset(
            root,
            VERSION,
            split,
            [dict(type="LoadMultiViewImages"), dict(type="LoadSceneLabels"), dict(type="PackBEVInputs")],
            test_mode=True,
        )
        sample = packed[0]["data_samples"]
        assert sample.gt_scene == labels and sample.scene_description in ("Night, parked cars", "Rain, turn left")


def test_a_scene_that_is_not_described():
    with pytest.raises(InputError, match="LoadSceneLabels: description: scene scene-1 has none; .* create_data"):
        LoadSceneLabels(SCENE_RULES).transform({"scene_name": "scene-1", "location": "boston-seaport"})


def test_rules_of_ones_own():
    # Expected: the first rule that is found; a task of which none is found has no label; none at all needs no words.
    rules = {"ground": {"snow": "snow|ice", "bare": ""}, "site": {"harbour": "crane"}}
    results = {"scene_description": "Ice between containers", "location": "yard"}
    assert LoadSceneLabels(rules).transform(results)["scene_labels"] == {"ground": "snow", "location": "yard"}
    assert LoadSceneLabels().transform({"location": "yard"})["scene_labels"] == {"location": "yard"}


def test_what_lacks_is_refused_where_the_dataset_is_built(tmp_path):
    # The first scene is described and the second is not: nothing is learned of the first before that is said.
    root = build_root(tmp_path / "root")
    table = root / VERSION / "scene.json"
    scenes = read_json(table)
    scenes[0]["description"] = "Night"
    write_json(table, scenes)
    write_index(root, VERSION, maps=False, progress=lambda line: None)
    with pytest.raises(InputError, match="LoadSceneLabels: description: scene scene-0003 has none"):
        NuScenesBEVDataset(root, VERSION, "all", [dict(type="LoadSceneLabels")])
    NuScenesBEVDataset(root, VERSION, "tiny_train", [dict(type="LoadSceneLabels")])
    NuScenesBEVDataset(root, VERSION, "all", [dict(type="LoadSceneLabels", rules={})])
    for pattern in ("snow(", 7):
        with pytest.raises(InputError, match=r"LoadSceneLabels.rules.ground.snow: .* is no expression"):
            LoadSceneLabels({"ground": {"snow": pattern}})

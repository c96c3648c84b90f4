"""Map expansions of a converter: own locations are drawn, and what is malformed gives one line that names its place.

That shapes of whole maps are the devkit's is tested in test_map_tiles.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tables import LOCATION, VERSION, build_root, edit_table, write_map

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.map_expansion import MapExpansion
from bevstack.datasets.nuscenes.map_rasterizer import rasterize_map, write_map_tiles
from bevstack.datasets.nuscenes.map_tiles import MapTiles
from bevstack.errors import InputError


@pytest.fixture
def path(tmp_path) -> Path:
    write_map(tmp_path)
    return tmp_path / "maps" / "expansion" / f"{LOCATION}.json"


def put(layer: str, **fields):
    return lambda content: content[layer][0].update(fields)


def far_from_the_rest(content: dict) -> None:
    for node in content["node"][1:]:
        node.update(x=node["x"] + 680_000, y=node["y"] + 5_400_000)


CASES = {
    "no polygon": (put("walkway", polygon_token=None), "walkway.walkway.polygon_token", "must be a token"),
    "polygon that is nowhere": (put("carpark_area", polygon_token="gone"), "carpark_area", "'gone' is no token"),
    "other field": (lambda c: c["walkway"][0].pop("polygon_token"), "walkway.walkway.polygon_token", "is missing"),
    "no list of polygons": (put("drivable_area", polygon_tokens="p"), "polygon_tokens", "must be a list"),
    "node that is nowhere": (lambda c: c["node"].pop(), "line.line-lane_divider.node_tokens", "'n27' is no token"),
    "polygon of two nodes": (put("polygon", exterior_node_tokens=["n0", "n1"]), "exterior_node_tokens", "2 node(s)"),
    "hole of two nodes": (put("polygon", holes=[{"node_tokens": ["n0", "n1"]}]), "holes", "2 node(s) where it takes 3"),
    "holes of another type": (put("polygon", holes="none"), "holes", "must be a list of records"),
    "line of one node": (put("line", node_tokens=["n0"]), "line.line-road_divider.node_tokens", "1 node(s)"),
    "nodes of another type": (put("line", node_tokens="n0"), "node_tokens", "must be a list of nodes"),
    "layer missing": (lambda c: c.pop("carpark_area"), "carpark_area", "this list is missing; write []"),
    "layer of another type": (lambda c: c.update(walkway={}), "walkway", "must be a list of records"),
    "node without a token": (lambda c: c["node"][0].pop("token"), "node[0].token", "is missing"),
    "text for a coordinate": (put("node", x="100.0"), "node.n0", "must be numbers"),
    "one node far away": (far_from_the_rest, "node n0", "the map would reach 680 km x 5400 km"),
    "older version": (lambda c: c.update(version=1.2), "version", "1.2 is outdated"),
    "no version": (lambda c: c.update(version="new"), "version", "'new' is no version"),
}


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_the_place(path, case):
    breaks, field, reason = CASES[case]
    content = json.loads(path.read_text())
    breaks(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        rasterize_map(MapExpansion.read(path))
    assert caught.value.file == str(path)
    assert field in caught.value.field and reason in caught.value.reason, str(caught.value)


@pytest.mark.parametrize("version", [1.3, "1.3", "1.10", "2"])
def test_versions_are_numbers_not_texts(path, version):
    # 1.10 is later than 1.3, and before it in the alphabet; converters write the version as a number.
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "version": version}))
    assert rasterize_map(MapExpansion.read(path))[0].any()


def test_what_has_no_node_is_empty(path):
    # nuScenes' own maps hold lines without nodes; the devkit skips them.
    content = json.loads(path.read_text())
    put("line", node_tokens=[])(content)
    put("polygon", exterior_node_tokens=[])(content)
    path.write_text(json.dumps(content))
    expansion = MapExpansion.read(path)
    assert [line.is_empty for line in expansion.lines("road_divider")] == [True]
    assert [area.is_empty for area in expansion.areas("drivable_area")] == [True]
    assert rasterize_map(expansion)[0].any()


def test_a_location_of_ones_own_is_drawn(tmp_path):
    # docs/custom_dataset.md promises it; the devkit's reader knows four cities alone.
    root = build_root(tmp_path / "root", maps=True)
    edit_table(root, "log", lambda logs: [{**log, "location": "yard"} for log in logs])
    write_map(root, "yard")
    summary = create_nuscenes(root, VERSION)
    assert list(summary["maps"]) == ["yard"]
    tiles = MapTiles.open(root, VERSION)
    tiles.require("yard")
    with pytest.raises(InputError, match="the map expansion is there, but not drawn: run create_data again"):
        tiles.require(LOCATION)
    with pytest.raises(InputError, match="put the map expansion there and run create_data again"):
        tiles.require("harbour")
    with pytest.raises(InputError, match="no map of some scenes; their log names no location"):
        tiles.require("")


def test_a_location_does_not_lead_out_of_the_folder(tmp_path):
    write_map(tmp_path, "../../elsewhere")
    with pytest.raises(InputError, match="'../../elsewhere' of a log is no name of a map's file"):
        write_map_tiles(tmp_path, ["../../elsewhere"], tmp_path / "tiles")
    assert not (tmp_path / "tiles").exists()

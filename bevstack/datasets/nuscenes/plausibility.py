"""Whether what nuScenes' tables say can be right: what is asked of every dataset, and what these tables know besides.

The general measures and their limits are :mod:`bevstack.datasets.plausibility`'s. Here stand those that need an ego
frame whose z = 0 is the ground, images with a time of their own, named splits or a map's layers, and the words that
tell a writer of tables where to look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from bevstack.datasets.nuscenes.map_tiles import MapTiles
from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS
from bevstack.datasets.plausibility import NEAR_M, Finding, Recordings, judged, moved, share
from bevstack.geometry import BEVGrid
from bevstack.structures.rigid_arrays import rigid_inverse

_OFF_SAMPLE_S = 1.0
_TILT_DEG, _FEET_M = 30.0, 2.0
_HALF_A_SECOND = (0.02, 0.25)

_IN_TABLES = {
    f"boxes within {NEAR_M} m": "boxes have to be in the global frame, as the ego poses are",
    "boxes with points": "write 1 where points are not counted",
    "known velocities": "a velocity needs prev or next of the annotation, at most 1.5 s away (--velocity-gap)",
    "ego speed": "velocities of boxes across a jump are taken for unknown",
    "time between samples": "times are in microseconds; no velocity reaches farther than 1.5 s without --velocity-gap",
}
"""Measure -> what a doubt of it means in the tables."""


def findings(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Finding]:
    """Measure and judge an index.

    Args:
        header: its names: ``cameras``, ``scenes``, ``splits``.
        arrays: what it holds (:mod:`bevstack.datasets.nuscenes.index`), paths included.
    """
    recordings = _recordings(header, arrays)
    general = [
        replace(finding, doubt=f"{finding.doubt}; {_IN_TABLES[finding.what]}")
        if finding.doubt and finding.what in _IN_TABLES
        else finding
        for finding in judged(recordings)
    ]
    points = next((place for place, finding in enumerate(general) if finding.what == "boxes with points"), 0)
    return [
        *general[:points],
        *_feet(recordings, arrays),
        *general[points:],
        *_rates(recordings),
        *_images_off(arrays),
        *_frames(recordings, arrays),
        *_splits(header),
    ]


def map_findings(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], tiles: MapTiles) -> list[Finding]:
    """Whether the ego drives on what the maps of an index call drivable.

    Args:
        header, arrays: see :func:`findings`.
        tiles: the index's maps; there may be none.
    """
    on_road, total = 0, 0
    grid = BEVGrid((1, 1), (-1.0, 1.0), (-1.0, 1.0))
    road = MAP_LAYERS.index("drivable_area")
    for pose, scene in zip(arrays["global_from_lidar_ego"], arrays["sample_scene"], strict=True):
        location = header["scenes"][int(scene)]["location"]
        if tiles.has(location):
            total += 1
            on_road += int(tiles.layers(location, np.asarray(pose), grid)[road].any())
    if not total:
        return []
    doubt = "the map is of another place, or its metres are not those of the ego poses" if 2 * on_road < total else ""
    return [Finding("samples on the map's drivable area", share(on_road, total), doubt)]


def _recordings(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Recordings:
    """An index as the general measures take it."""
    sample = np.repeat(np.arange(len(arrays["sample_token"])), np.diff(arrays["box_offset"]))
    bev_from_global = rigid_inverse(np.asarray(arrays["global_from_bev"]))
    ego_from_sensor, calibration = np.asarray(arrays["ego_from_sensor"]), np.asarray(arrays["camera_calibration"])
    global_from_camera = np.asarray(arrays["global_from_camera_ego"]) @ ego_from_sensor[calibration]
    return Recordings(
        tokens=[token.decode() for token in arrays["sample_token"].tolist()],
        scenes=[header["scenes"][scene]["name"] for scene in arrays["sample_scene"].tolist()],
        timestamp_us=np.asarray(arrays["sample_timestamp_us"]),
        previous=np.asarray(arrays["sample_prev"]),
        global_from_ego=np.asarray(arrays["global_from_lidar_ego"]),
        cameras=header["cameras"],
        image_paths=np.asarray(arrays["camera_path"]),
        image_size_px=np.asarray(arrays["camera_size_px"]),
        pixels_from_camera=np.asarray(arrays["intrinsics"])[calibration],
        camera_from_bev=rigid_inverse(global_from_camera) @ np.asarray(arrays["global_from_bev"])[:, None],
        ego_from_camera=ego_from_sensor[calibration[0]],
        box_sample=sample,
        box_center=moved(bev_from_global[sample], np.asarray(arrays["box_center"])),
        box_velocity=np.asarray(arrays["box_velocity"])[:, :2],
        box_points=np.asarray(arrays["box_num_lidar_pts"]) + np.asarray(arrays["box_num_radar_pts"]),
    )


def _feet(recordings: Recordings, arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    near = recordings.near()
    if near.any():
        ego_from_global = rigid_inverse(recordings.global_from_ego)
        in_ego = moved(ego_from_global[recordings.box_sample[near]], np.asarray(arrays["box_center"])[near])
        feet = float(np.median(in_ego[:, 2] - arrays["box_wlh"][near, 2] / 2))
        doubt = "boxes float or are buried: translation is a box's middle, size (width, length, height)"
        yield Finding("their feet above the ground", f"{feet:+.2f} m (median)", doubt if abs(feet) > _FEET_M else "")


def _rates(recordings: Recordings) -> Iterator[Finding]:
    _, seconds = recordings.steps()
    if len(seconds) and _HALF_A_SECOND[0] <= (middle := float(np.median(seconds))) <= _HALF_A_SECOND[1]:
        yield Finding("samples a second", f"{1 / middle:.3g}; --every {round(0.5 / middle)} makes it 2, as nuScenes'")


def _images_off(arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    off = 1e-6 * (np.asarray(arrays["camera_timestamp_us"]) - np.asarray(arrays["sample_timestamp_us"])[:, None])
    worst = divmod(int(np.abs(off).argmax()), off.shape[1])
    doubt = ""
    if abs(off[worst]) > _OFF_SAMPLE_S:
        doubt = f"sample {arrays['sample_token'][worst[0]].decode()} and its image are not of one moment"
    yield Finding("images off their sample", f"{abs(off[worst]):.3f} s at most", doubt)


def _frames(recordings: Recordings, arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    poses = np.asarray(arrays["global_from_bev"])
    tilt = float(np.median(np.degrees(np.arccos(np.clip(poses[:, 2, 2], -1, 1)))))
    doubt = "the lidar's frame, which is the BEV's, needs z up in the global frame" if tilt > _TILT_DEG else ""
    yield Finding("BEV's z axis off the vertical", f"{tilt:.1f} degrees (median)", doubt)
    rows, _ = recordings.steps()
    way = poses[rows, :3, 3] - poses[recordings.previous[rows], :3, 3]
    moving = np.linalg.norm(way, axis=1) > 0.5
    if moving.any():
        x, y, _ = np.einsum("nij,ni->nj", poses[rows[moving], :3, :3], way[moving]).mean(axis=0)
        note = "" if y > abs(x) else "; published weights and pictures take +y for ahead"
        yield Finding("the way ahead in the BEV frame", f"({x:+.2f}, {y:+.2f}) m a sample{note}")


def _splits(header: Mapping[str, Any]) -> Iterator[Finding]:
    """Splits to learn from and splits to be scored on share nothing."""
    splits = {name: set(scenes) for name, scenes in header["splits"].items()}
    names = {scene["token"]: scene["name"] for scene in header["scenes"]}
    for learn in (name for name in splits if "train" in name):
        for score in (name for name in splits if "val" in name or "test" in name):
            if both := splits[learn] & splits[score]:
                first = names[min(both)]
                yield Finding(
                    f"scenes in {learn} and {score}", str(len(both)), f"{first} is learned from and scored on"
                )

"""Whether what the tables say can be right: boxes, speeds, times, frames and cameras of an index, measured and judged.

Tables may fit together without a fault and still be wrong: boxes in another frame, cameras without optical axes,
intrinsics of another image size. Such a set trains, and learns nothing. Each finding names a measure, what was found
and, where that cannot be right, why; the limits are wide, so that what is merely unusual passes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevstack.datasets.nuscenes.map_tiles import MapTiles
from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS
from bevstack.geometry import BEVGrid
from bevstack.structures.rigid_arrays import rigid_inverse

NEAR_M = 51.2
"""Half the side of the published BEV grid."""

_LEAST_NEAR, _LEAST_SEEN, _LEAST_HIT, _LEAST_KNOWN = 0.05, 0.25, 0.1, 0.1
_FASTEST_BOX_MPS, _FASTEST_EGO_MPS, _FASTEST_TURN_DPS = 60.0, 70.0, 120.0
_STEP_S = (0.02, 2.0)
_OFF_SAMPLE_S = 1.0
_TILT_DEG, _AXIS_DEG, _FEET_M = 30.0, 60.0, 2.0
_CENTRE, _FOV_DEG, _PIXEL_ASPECT = (0.2, 0.8), (10.0, 170.0), (0.8, 1.25)


@dataclass(frozen=True)
class Finding:
    """One measure: ``what`` it is, what was ``found``, and the ``doubt`` where that cannot be right, "" otherwise."""

    what: str
    found: str
    doubt: str = ""


def findings(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Finding]:
    """Measure and judge an index.

    Args:
        header: its names: ``cameras``, ``scenes``, ``splits``.
        arrays: what it holds (:mod:`bevstack.datasets.nuscenes.index`), paths included.
    """
    return [
        *_boxes(arrays, _coverage(header, arrays)),
        *_velocities(arrays),
        *_ego(header, arrays),
        *_times(arrays),
        *_frames(arrays),
        *_calibrations(header, arrays),
        *_cameras(header, arrays),
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
    return [Finding("samples on the map's drivable area", _share(on_road, total), doubt)]


def _sample_of_box(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(arrays["sample_token"])), np.diff(arrays["box_offset"]))


def _moved(dst_from_src: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 3) points by (n, 4, 4) transforms."""
    return np.einsum("nij,nj->ni", dst_from_src[:, :3, :3], points) + dst_from_src[:, :3, 3]


def _share(count: int, total: int) -> str:
    return f"{count} of {total} ({100 * count / total:.0f} %)"


def _boxes(arrays: Mapping[str, np.ndarray], coverage: float) -> Iterator[Finding]:
    total, sample = len(arrays["box_center"]), _sample_of_box(arrays)
    if not total:
        yield Finding("boxes", "none is annotated: only format_only evaluates such a set")
        return
    center = np.asarray(arrays["box_center"])
    in_bev = _moved(rigid_inverse(np.asarray(arrays["global_from_bev"]))[sample], center)
    near = (np.abs(in_bev[:, :2]) < NEAR_M).all(axis=1)
    doubt = "boxes have to be in the global frame, as the ego poses are" if near.mean() < _LEAST_NEAR else ""
    yield Finding(f"boxes within {NEAR_M} m", _share(int(near.sum()), total), doubt)
    if near.any():
        seen = np.zeros(int(near.sum()), dtype=bool)
        for n in range(arrays["camera_path"].shape[1]):
            seen |= _in_image(arrays, n, sample[near], center[near])
        doubt = ""
        if seen.mean() < _LEAST_SEEN * coverage:
            doubt = "far fewer than the cameras' directions promise: are their axes x right, y down, z ahead?"
        yield Finding("of these, centre in an image", _share(int(seen.sum()), len(seen)), doubt)
        in_ego = _moved(rigid_inverse(np.asarray(arrays["global_from_lidar_ego"]))[sample[near]], center[near])
        feet = float(np.median(in_ego[:, 2] - arrays["box_wlh"][near, 2] / 2))
        doubt = "boxes float or are buried: translation is a box's middle, size (width, length, height)"
        yield Finding("their feet above the ground", f"{feet:+.2f} m (median)", doubt if abs(feet) > _FEET_M else "")
    hit = int(((arrays["box_num_lidar_pts"] + arrays["box_num_radar_pts"]) > 0).sum())
    doubt = "boxes of 0 points are neither learned nor scored; write 1 where points are not counted"
    yield Finding("boxes with points", _share(hit, total), doubt if hit < _LEAST_HIT * total else "")


def _in_image(arrays: Mapping[str, np.ndarray], n: int, sample: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(n,) bool: global points that camera n shows at their samples."""
    calibration = arrays["camera_calibration"][:, n]
    global_from_camera = np.asarray(arrays["global_from_camera_ego"][:, n]) @ arrays["ego_from_sensor"][calibration]
    points = _moved(rigid_inverse(global_from_camera)[sample], center)
    pixels = np.einsum("nij,nj->ni", np.asarray(arrays["intrinsics"])[calibration[sample]], points)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = pixels[:, :2] / pixels[:, 2:]
        inside = ((place > 0) & (place < arrays["camera_size_px"][sample, n][:, ::-1])).all(axis=1)
    return inside & (points[:, 2] > 0)


def _velocities(arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    velocity = np.asarray(arrays["box_velocity"])
    if not len(velocity):
        return
    known = np.isfinite(velocity).all(axis=1)
    single = bool((arrays["sample_prev"] < 0).all())
    doubt = "a velocity needs prev or next of the annotation, at most 1.5 s away (--velocity-gap)"
    doubt = "" if single or known.mean() >= _LEAST_KNOWN else doubt
    note = "; single key frames know none" if single else ""
    yield Finding("known velocities", _share(int(known.sum()), len(known)) + note, doubt)
    if known.any():
        speed = np.where(known, np.linalg.norm(velocity[:, :2], axis=1), -1.0)
        row = int(speed.argmax())
        token = arrays["sample_token"][_sample_of_box(arrays)[row]].decode()
        doubt = "links lead to another object, or a pose or a time jumps" if speed[row] > _FASTEST_BOX_MPS else ""
        yield Finding("the fastest box", f"{speed[row]:.1f} m/s at sample {token}", doubt)


def _steps(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of samples that have a predecessor, and seconds since then."""
    rows = np.flatnonzero(arrays["sample_prev"] >= 0)
    times = np.asarray(arrays["sample_timestamp_us"])
    return rows, 1e-6 * (times[rows] - times[arrays["sample_prev"][rows]])


def _ego(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    rows, seconds = _steps(arrays)
    if not len(rows):
        return
    poses = np.asarray(arrays["global_from_lidar_ego"])
    before = poses[arrays["sample_prev"][rows]]
    way = np.linalg.norm(poses[rows, :3, 3] - before[:, :3, 3], axis=1)
    speed, row = way / seconds, int((way / seconds).argmax())
    scene = header["scenes"][int(arrays["sample_scene"][rows[row]])]["name"]
    place = f"in {scene} at sample {arrays['sample_token'][rows[row]].decode()}"
    doubt = f"the ego jumps {way[row]:.0f} m {place}" if speed[row] > _FASTEST_EGO_MPS else ""
    yield Finding("ego speed", f"{np.median(speed):.1f} m/s (median), {speed[row]:.1f} at most", doubt)
    cosine = (np.einsum("nij,nij->n", before[:, :3, :3], poses[rows, :3, :3]) - 1) / 2
    turn = np.degrees(np.arccos(np.clip(cosine, -1, 1))) / seconds
    token = arrays["sample_token"][rows[int(turn.argmax())]].decode()
    doubt = f"the ego turns over at sample {token}" if turn.max() > _FASTEST_TURN_DPS else ""
    yield Finding("ego turn", f"{np.median(turn):.1f} degrees/s (median), {turn.max():.1f} at most", doubt)


def _times(arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    _, seconds = _steps(arrays)
    if len(seconds):
        middle, pauses = float(np.median(seconds)), int((seconds > _STEP_S[1]).sum())
        doubt = ""
        if not _STEP_S[0] <= middle <= _STEP_S[1]:
            doubt = f"a pause above {_STEP_S[1]:g} s ends a stream: no history without the dataset's max_gap_seconds, "
            doubt += "no velocities without --velocity-gap"
            doubt = doubt if middle > _STEP_S[1] else "samples are nearly at one time: are the times in microseconds?"
        found = f"{middle:.3g} s (median), {seconds.min():.3g} to {seconds.max():.3g}, {pauses} pauses above 2 s"
        found += f"; --every {round(0.5 / middle)} makes it half a second" if _STEP_S[0] <= middle <= 0.25 else ""
        yield Finding("time between samples", found, doubt)
    off = 1e-6 * (np.asarray(arrays["camera_timestamp_us"]) - np.asarray(arrays["sample_timestamp_us"])[:, None])
    worst = divmod(int(np.abs(off).argmax()), off.shape[1])
    doubt = ""
    if abs(off[worst]) > _OFF_SAMPLE_S:
        doubt = f"sample {arrays['sample_token'][worst[0]].decode()} and its image are not of one moment"
    yield Finding("images off their sample", f"{abs(off[worst]):.3f} s at most", doubt)


def _frames(arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    poses = np.asarray(arrays["global_from_bev"])
    tilt = float(np.median(np.degrees(np.arccos(np.clip(poses[:, 2, 2], -1, 1)))))
    doubt = "the lidar's frame, which is the BEV's, needs z up in the global frame" if tilt > _TILT_DEG else ""
    yield Finding("BEV's z axis off the vertical", f"{tilt:.1f} degrees (median)", doubt)
    rows, _ = _steps(arrays)
    way = poses[rows, :3, 3] - poses[arrays["sample_prev"][rows], :3, 3]
    moving = np.linalg.norm(way, axis=1) > 0.5
    if moving.any():
        x, y, _ = np.einsum("nij,ni->nj", poses[rows[moving], :3, :3], way[moving]).mean(axis=0)
        note = "" if y > abs(x) else "; published weights and pictures take +y for ahead"
        yield Finding("the way ahead in the BEV frame", f"({x:+.2f}, {y:+.2f}) m a sample{note}")


def _calibrations(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """The worst of all calibrations, each with the sizes of its camera's images."""
    doubts: dict[str, str] = {}
    centres, views = [], []
    for n, camera in enumerate(header["cameras"]):
        keys = np.c_[arrays["camera_calibration"][:, n], arrays["camera_size_px"][:, n]]
        for calibration, height, width in np.unique(keys, axis=0).tolist():
            matrix = np.asarray(arrays["intrinsics"][calibration])
            centre = matrix[0, 2] / width, matrix[1, 2] / height
            fov = 2 * np.degrees(np.arctan(width / (2 * matrix[0, 0])))
            centres.append(centre)
            views.append(fov)
            if np.abs(matrix[2] - (0, 0, 1)).max() > 1e-6:
                doubts.setdefault("centre", f"{camera}: the last row of its intrinsics is not (0, 0, 1): transposed?")
            if not all(_CENTRE[0] <= part <= _CENTRE[1] for part in centre):
                place = f"({matrix[0, 2]:.0f}, {matrix[1, 2]:.0f}) in an image of {width}x{height}"
                doubts.setdefault("centre", f"{camera}: {place}: intrinsics of another image size?")
            if not _FOV_DEG[0] <= fov <= _FOV_DEG[1]:
                doubts.setdefault("view", f"{camera}: {fov:.0f} degrees wide: is its focal length in pixels?")
            elif not _PIXEL_ASPECT[0] <= matrix[0, 0] / matrix[1, 1] <= _PIXEL_ASPECT[1]:
                doubts.setdefault("view", f"{camera}: focal lengths {matrix[0, 0]:.0f} and {matrix[1, 1]:.0f} pixels")
    low, high = np.min(centres, axis=0), np.max(centres, axis=0)
    found = f"x {low[0]:.2f} to {high[0]:.2f} of the width, y {low[1]:.2f} to {high[1]:.2f} of the height"
    yield Finding("principal point", found, doubts.get("centre", ""))
    yield Finding("field of view", f"{min(views):.0f} to {max(views):.0f} degrees", doubts.get("view", ""))


def _axes(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N, 4, 4) ego from each camera, at the first sample."""
    return np.asarray(arrays["ego_from_sensor"])[arrays["camera_calibration"][0]]


def _coverage(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> float:
    """Share of the directions around that some camera looks at, at the first sample."""
    around = np.radians(np.arange(360) + 0.5)
    seen = np.zeros(360, dtype=bool)
    for n, (ego_from_camera, calibration) in enumerate(
        zip(_axes(arrays), arrays["camera_calibration"][0], strict=True)
    ):
        x, y, z = ego_from_camera[:3, 2]
        if np.hypot(x, y) > abs(z):
            half = np.arctan(arrays["camera_size_px"][0, n, 1] / (2 * arrays["intrinsics"][calibration, 0, 0]))
            seen |= np.cos(around - np.arctan2(y, x)) > np.cos(half)
    return float(seen.mean()) if seen.any() else 1.0


def _cameras(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    names, poses = header["cameras"], _axes(arrays)
    up = np.degrees(np.arcsin(np.clip(poses[:, 2, 2], -1, 1)))
    worst = int(np.abs(up).argmax())
    doubt = ""
    if abs(up[worst]) > _AXIS_DEG:
        doubt = f"{names[worst]} looks at the {'sky' if up[worst] > 0 else 'ground'}; a camera's z axis points ahead"
    yield Finding("cameras' axes above the horizon", f"{up.min():+.0f} to {up.max():+.0f} degrees", doubt)
    same = [
        f"{names[a]} and {names[b]}"
        for a in range(len(names))
        for b in range(a)
        if np.abs(poses[a] - poses[b]).max() < 1e-3
    ]
    doubt = f"{same[0]} stand at one place and look one way" if same else ""
    yield Finding("directions that a camera sees", f"{100 * _coverage(header, arrays):.0f} %", doubt)
    paths = np.asarray(arrays["camera_path"])
    shared = [row for row in range(len(paths)) if len(set(paths[row].tolist())) < paths.shape[1]]
    doubt = ""
    if shared:
        first = arrays["sample_token"][shared[0]].decode()
        doubt = f"{len(shared)} samples show one file for several cameras, the first is {first}"
    yield Finding("image files", f"{len(np.unique(paths))} of {paths.size} named", doubt)


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

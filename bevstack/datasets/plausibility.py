"""Whether what a dataset says can be right, whatever its format: boxes, speeds, times and cameras, measured and judged.

Records may fit together without a fault and still be wrong: boxes in another frame, cameras without optical axes,
intrinsics of another image size. Such a set trains, and learns nothing. Each finding names a measure, what was found
and, where that cannot be right, why; the limits are wide, so that what is merely unusual passes. :func:`findings` asks
any dataset, ``tools/visualize.py --ground-truth`` prints what it answers; formats that know more of themselves make
:class:`Recordings` and judge these, as :mod:`bevstack.datasets.nuscenes.plausibility` does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from bevstack.datasets.base import BEVDataset, ClipRecord
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse

NEAR_M = 51.2
"""Half the side of the published BEV grid."""

FASTEST_EGO_MPS = 70.0
"""An ego that is faster has jumped: its pose is wrong, not its speed."""

LONGEST_STEP_S = 2.0
"""The pause that ends a stream unless a dataset says otherwise."""

_LEAST_NEAR, _LEAST_SEEN, _LEAST_HIT, _LEAST_KNOWN = 0.05, 0.25, 0.1, 0.1
_FASTEST_BOX_MPS, _FASTEST_TURN_DPS = 60.0, 120.0
_SHORTEST_STEP_S = 0.02
_AXIS_DEG = 60.0
_CENTRE, _FOV_DEG, _PIXEL_ASPECT = (0.2, 0.8), (10.0, 170.0), (0.8, 1.25)


@dataclass(frozen=True)
class Finding:
    """One measure: ``what`` it is, what was ``found``, and the ``doubt`` where that cannot be right, "" otherwise."""

    what: str
    found: str
    doubt: str = ""


@dataclass(frozen=True)
class Recordings:
    """What S samples say that N cameras saw, and their A boxes. Metres, seconds where units are not named.

    Args:
        tokens, scenes: S names of samples and of the scenes that they lie in.
        timestamp_us: (S,) int64 microseconds.
        previous: (S,) int row of each sample's predecessor, -1 where there is none.
        global_from_ego: (S, 4, 4) the ego car, in a frame that stands still along a scene.
        cameras: N names.
        image_paths: (S, N) names of files.
        image_size_px: (S, N, 2) (height, width).
        pixels_from_camera: (S, N, 3, 3) intrinsics.
        camera_from_bev: (S, N, 4, 4), a camera's z axis pointing ahead.
        ego_from_camera: (N, 4, 4) of the first sample, z up in the ego's frame.
        box_sample: (A,) row of the sample that a box is annotated at.
        box_center: (A, 3) middles, in the BEV frame of their samples.
        box_velocity: (A, 2) m/s along level axes, NaN where unknown.
        box_points: (A,) points on a box; None where nobody counts them.
    """

    tokens: Sequence[str]
    scenes: Sequence[str]
    timestamp_us: np.ndarray
    previous: np.ndarray
    global_from_ego: np.ndarray
    cameras: Sequence[str]
    image_paths: np.ndarray
    image_size_px: np.ndarray
    pixels_from_camera: np.ndarray
    camera_from_bev: np.ndarray
    ego_from_camera: np.ndarray
    box_sample: np.ndarray
    box_center: np.ndarray
    box_velocity: np.ndarray
    box_points: np.ndarray | None = None

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows of samples that have a predecessor, and (n,) seconds since then."""
        rows = np.flatnonzero(self.previous >= 0)
        return rows, 1e-6 * (self.timestamp_us[rows] - self.timestamp_us[self.previous[rows]])

    def ego_steps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of samples that have a predecessor, (n,) metres that the ego moved since then, and seconds."""
        rows, seconds = self.steps()
        places = self.global_from_ego[:, :3, 3]
        return rows, np.linalg.norm(places[rows] - places[self.previous[rows]], axis=1), seconds

    def near(self) -> np.ndarray:
        """(A,) bool: boxes on the published BEV grid."""
        return (np.abs(self.box_center[:, :2]) < NEAR_M).all(axis=1)


def findings(dataset: BEVDataset, chosen: Sequence[int] | None = None) -> list[Finding]:
    """Measure and judge a dataset of any format.

    Args:
        dataset: it; its BEV frame stands for the ego's.
        chosen: numbers of the samples to ask; None for all.

    Raises:
        InputError: a sample has other cameras than the first; what :mod:`bevstack.datasets.record_checks` refuses.
    """
    return judged(recordings_of(dataset, chosen))


def judged(recordings: Recordings) -> list[Finding]:
    """Measure and judge recordings of at least one sample."""
    return [
        *_boxes(recordings),
        *_velocities(recordings),
        *_ego(recordings),
        *_times(recordings),
        *_calibrations(recordings),
        *_cameras(recordings),
    ]


def recordings_of(dataset: BEVDataset, chosen: Sequence[int] | None = None) -> Recordings:
    """What a dataset answers of its samples, each token once (:func:`findings`)."""
    clips: dict[str, ClipRecord] = {}
    for number in range(len(dataset)) if chosen is None else chosen:
        clip = dataset.clip(number)
        clips.setdefault(clip.frames[-1].token, clip)
    if not clips:
        raise InputError(dataset.source, "samples", "there is none")
    tokens, records = list(clips), list(clips.values())
    row_of = {token: row for row, token in enumerate(tokens)}
    cameras = [clip.frames[-1].cameras for clip in records]
    truth = [dataset.truth(token) for token in tokens]
    for token, camera in zip(tokens, cameras, strict=True):
        if list(camera.names) != list(cameras[0].names):
            raise InputError(dataset.source, token, f"has other cameras than {tokens[0]}")
    boxes = np.concatenate([objects.boxes for objects in truth]).astype(np.float64)
    points = [objects.num_points for objects in truth if objects.num_points is not None]
    return Recordings(
        tokens=tokens,
        scenes=[clip.scene.name for clip in records],
        timestamp_us=np.rint([1e6 * clip.timestamp_s for clip in records]).astype(np.int64),
        previous=np.array([row_of.get(clip.prev_token, -1) for clip in records]),
        global_from_ego=np.stack([clip.global_from_bev for clip in records]),
        cameras=list(cameras[0].names),
        image_paths=np.array([list(c.image_paths) for c in cameras]),
        image_size_px=np.stack([c.image_size_px for c in cameras]),
        pixels_from_camera=np.stack([c.pixels_from_camera for c in cameras]),
        camera_from_bev=np.stack([c.camera_from_bev for c in cameras]),
        ego_from_camera=rigid_inverse(np.asarray(cameras[0].camera_from_bev)),
        box_sample=np.repeat(np.arange(len(tokens)), [len(objects.boxes) for objects in truth]),
        box_center=boxes[:, :3] + np.array([0, 0, 0.5]) * boxes[:, 5:6],
        box_velocity=boxes[:, 7:9],
        box_points=np.concatenate(points) if len(points) == len(truth) else None,
    )


def print_findings(findings: Sequence[Finding], console: Console | None = None) -> None:
    """A table of what was measured, and on stderr a warning for each measure that cannot be right."""
    table = Table(title="plausibility", title_justify="left", box=None)
    for column in ("measure", "found", "in doubt"):
        table.add_column(column)
    for finding in findings:
        table.add_row(finding.what, finding.found, "yes" if finding.doubt else "")
    (console or Console()).print(table)
    for finding in findings:
        if finding.doubt:
            print(f"warning: {finding.what}: {finding.found}; {finding.doubt}", file=sys.stderr)


def share(count: int, total: int) -> str:
    """In words, as ``3 of 4 (75 %)``: how many of how many, and in percent."""
    return f"{count} of {total} ({100 * count / total:.0f} %)"


def moved(dst_from_src: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(n, 3) points by (n, 4, 4) transforms."""
    return np.einsum("nij,nj->ni", dst_from_src[:, :3, :3], points) + dst_from_src[:, :3, 3]


def _boxes(recordings: Recordings) -> Iterator[Finding]:
    total = len(recordings.box_center)
    if not total:
        yield Finding("boxes", "none is annotated: only format_only evaluates such a set")
        return
    near = recordings.near()
    doubt = "they are not where the cameras are: in which frame are they?" if near.mean() < _LEAST_NEAR else ""
    yield Finding(f"boxes within {NEAR_M} m", share(int(near.sum()), total), doubt)
    if near.any():
        seen = np.zeros(int(near.sum()), dtype=bool)
        for n in range(len(recordings.cameras)):
            seen |= _in_image(recordings, n, recordings.box_sample[near], recordings.box_center[near])
        doubt = ""
        if seen.mean() < _LEAST_SEEN * _coverage(recordings):
            doubt = "far fewer than the cameras' directions promise: are their axes x right, y down, z ahead?"
        yield Finding("of these, centre in an image", share(int(seen.sum()), len(seen)), doubt)
    if recordings.box_points is not None:
        hit = int((recordings.box_points > 0).sum())
        doubt = "boxes of 0 points are neither learned nor scored" if hit < _LEAST_HIT * total else ""
        yield Finding("boxes with points", share(hit, total), doubt)


def _in_image(recordings: Recordings, n: int, sample: np.ndarray, center: np.ndarray) -> np.ndarray:
    """(n,) bool: points in the BEV frames of their samples that camera n shows."""
    points = moved(recordings.camera_from_bev[sample, n], center)
    pixels = np.einsum("nij,nj->ni", recordings.pixels_from_camera[sample, n], points)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = pixels[:, :2] / pixels[:, 2:]
        inside = ((place > 0) & (place < recordings.image_size_px[sample, n][:, ::-1])).all(axis=1)
    return inside & (points[:, 2] > 0)


def _velocities(recordings: Recordings) -> Iterator[Finding]:
    velocity = recordings.box_velocity
    if not len(velocity):
        return
    known = np.isfinite(velocity).all(axis=1)
    single = bool((recordings.previous < 0).all())
    doubt = "" if single or known.mean() >= _LEAST_KNOWN else "who moves and who stands is not learned"
    note = "; single key frames know none" if single else ""
    yield Finding("known velocities", share(int(known.sum()), len(known)) + note, doubt)
    if known.any():
        speed = np.where(known, np.linalg.norm(velocity, axis=1), -1.0)
        row = int(speed.argmax())
        token = recordings.tokens[recordings.box_sample[row]]
        doubt = "links lead to another object, or a pose or a time jumps" if speed[row] > _FASTEST_BOX_MPS else ""
        yield Finding("the fastest box", f"{speed[row]:.1f} m/s at sample {token}", doubt)


def _ego(recordings: Recordings) -> Iterator[Finding]:
    rows, way, seconds = recordings.ego_steps()
    if not len(rows):
        return
    speed, row = way / seconds, int((way / seconds).argmax())
    place = f"in {recordings.scenes[rows[row]]} at sample {recordings.tokens[rows[row]]}"
    jumps, doubt = int((speed > FASTEST_EGO_MPS).sum()), ""
    if jumps:
        others = f", and {jumps - 1} times more" if jumps > 1 else ""
        doubt = f"the ego jumps {way[row]:.0f} m {place}{others}"
    yield Finding("ego speed", f"{np.median(speed):.1f} m/s (median), {speed[row]:.1f} at most", doubt)
    poses = recordings.global_from_ego
    before = poses[recordings.previous[rows]]
    cosine = (np.einsum("nij,nij->n", before[:, :3, :3], poses[rows, :3, :3]) - 1) / 2
    turn = np.degrees(np.arccos(np.clip(cosine, -1, 1))) / seconds
    token = recordings.tokens[rows[int(turn.argmax())]]
    doubt = f"the ego turns over at sample {token}" if turn.max() > _FASTEST_TURN_DPS else ""
    yield Finding("ego turn", f"{np.median(turn):.1f} degrees/s (median), {turn.max():.1f} at most", doubt)


def _times(recordings: Recordings) -> Iterator[Finding]:
    _, seconds = recordings.steps()
    if not len(seconds):
        return
    middle, pauses, doubt = float(np.median(seconds)), int((seconds > LONGEST_STEP_S).sum()), ""
    if middle > LONGEST_STEP_S:
        doubt = f"a pause above {LONGEST_STEP_S:g} s ends a stream: no history without the dataset's max_gap_seconds"
    elif middle < _SHORTEST_STEP_S:
        doubt = "samples are nearly at one time: are the times in microseconds?"
    found = f"{middle:.3g} s (median), {seconds.min():.3g} to {seconds.max():.3g}, {pauses} pauses above 2 s"
    yield Finding("time between samples", found, doubt)


def _calibrations(recordings: Recordings) -> Iterator[Finding]:
    """The worst of all calibrations, each with the sizes of its camera's images."""
    doubts: dict[str, str] = {}
    centres, views = [], []
    for n, camera in enumerate(recordings.cameras):
        intrinsics = recordings.pixels_from_camera[:, n].reshape(-1, 9)
        for values in np.unique(np.c_[intrinsics, recordings.image_size_px[:, n]], axis=0):
            matrix, (height, width) = values[:9].reshape(3, 3), values[9:]
            with np.errstate(divide="ignore", invalid="ignore"):
                centre = matrix[0, 2] / width, matrix[1, 2] / height
                fov = 2 * np.degrees(np.arctan(width / (2 * matrix[0, 0])))
                aspect = matrix[0, 0] / matrix[1, 1]
            centres.append(centre)
            views.append(fov)
            if np.abs(matrix[2] - (0, 0, 1)).max() > 1e-6:
                doubts.setdefault("centre", f"{camera}: the last row of its intrinsics is not (0, 0, 1): transposed?")
            if not all(_CENTRE[0] <= part <= _CENTRE[1] for part in centre):
                place = f"({matrix[0, 2]:.0f}, {matrix[1, 2]:.0f}) in an image of {width:.0f}x{height:.0f}"
                doubts.setdefault("centre", f"{camera}: {place}: intrinsics of another image size?")
            if not _FOV_DEG[0] <= fov <= _FOV_DEG[1]:
                doubts.setdefault("view", f"{camera}: {fov:.0f} degrees wide: is its focal length in pixels?")
            elif not _PIXEL_ASPECT[0] <= aspect <= _PIXEL_ASPECT[1]:
                doubts.setdefault("view", f"{camera}: focal lengths {matrix[0, 0]:.0f} and {matrix[1, 1]:.0f} pixels")
    low, high = np.min(centres, axis=0), np.max(centres, axis=0)
    found = f"x {low[0]:.2f} to {high[0]:.2f} of the width, y {low[1]:.2f} to {high[1]:.2f} of the height"
    yield Finding("principal point", found, doubts.get("centre", ""))
    yield Finding("field of view", f"{min(views):.0f} to {max(views):.0f} degrees", doubts.get("view", ""))


def _coverage(recordings: Recordings) -> float:
    """Share of the directions around that some camera looks at, at the first sample."""
    around = np.radians(np.arange(360) + 0.5)
    seen = np.zeros(360, dtype=bool)
    for n, ego_from_camera in enumerate(recordings.ego_from_camera):
        x, y, z = ego_from_camera[:3, 2]
        if np.hypot(x, y) > abs(z):
            width, focal = recordings.image_size_px[0, n, 1], recordings.pixels_from_camera[0, n, 0, 0]
            seen |= np.cos(around - np.arctan2(y, x)) > np.cos(np.arctan2(width, 2 * focal))
    return float(seen.mean()) if seen.any() else 1.0


def _cameras(recordings: Recordings) -> Iterator[Finding]:
    names, poses, tokens = recordings.cameras, recordings.ego_from_camera, recordings.tokens
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
    yield Finding("directions that a camera sees", f"{100 * _coverage(recordings):.0f} %", doubt)
    paths = recordings.image_paths
    shared = [row for row in range(len(paths)) if len(set(paths[row].tolist())) < paths.shape[1]]
    doubt = ""
    if shared:
        doubt = f"{len(shared)} samples show one file for several cameras, the first is {tokens[shared[0]]}"
    yield Finding("image files", f"{len(np.unique(paths))} of {paths.size} named", doubt)

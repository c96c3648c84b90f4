"""How well image motion tells moving from standing vehicles: an oracle that is told where each object stands.

A model that reads motion from camera sweeps can know no more than the images hold. Here the place of each vehicle and
the ego car's motion are given, and what is left of the image motion at its place is its score for moving:

- ``pixels``: the annotated object moves from the sweep to the key frame by so many pixels more than if it stood still,
  with normally distributed noise on each axis. What an ideal reader of motion of that precision knows.
- ``flow``: the optical flow that OpenCV measures (DIS, Kroeger et al. 2016) at points of the box's visible faces, minus
  the motion that each point would have if the box stood still; the median over the points.

The area under the ROC curve (AUC) is the probability that a moving vehicle's score is above a standing one's; 0.5 says
nothing. Intervals are 95 % of a bootstrap over scenes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.registry import init_default_scope

from bevstack.datasets.base import BEVDataset, ClipRecord
from bevstack.errors import InputError
from bevstack.evaluation.drawn_scores import MOVING_MPS, VEHICLES, drawn_times, interval
from bevstack.experiments.arguments import motion_oracle_parser
from bevstack.files import atomic_write
from bevstack.images import read_image
from bevstack.registry import DATASETS

DISTANCES_M = ((5.0, 10.0), (10.0, 20.0), (20.0, 30.0), (5.0, 30.0))
LEAST_SEEN = 2
"""nuScenes' visibility of the objects that count: at least 40 %."""
_FACES = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1]], float)
_GRID = np.linspace(-0.8, 0.8, 5)
_LEAST_DEPTH_M = 1.0


@dataclass(frozen=True)
class Sighting:
    """One vehicle in one camera's key frame and sweep.

    Args:
        scene: its name.
        distance_m: from the BEV frame's origin.
        speed: metres per second.
        pixels: (2,) how far its centre moved in the image beyond what it would have, had it stood still.
        flow: (2,) the measured motion beyond that; NaN where it was not measured.
    """

    scene: str
    distance_m: float
    speed: float
    pixels: np.ndarray
    flow: np.ndarray


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    Raises:
        InputError: the set has no sweeps, or no vehicle is seen in it.
    """
    args = motion_oracle_parser().parse_args(arguments)
    rows = []
    for back in args.back:
        sightings = list(sightings_of(sweep_dataset(args.root, args.version, args.split, back), args.width))
        rows += table_rows(sightings, back, args.noise, args.draws)
        print(f"{back / 12 * 1000:.0f} ms: {len(sightings)} vehicles", flush=True)
    for row in rows:
        print(f"{row['method']:<24} {row['milliseconds']:>4} ms  " + "  ".join(map(cell_of, row["auc"])))
    content = {"kind": "motion oracle", "name": "motion", "width_px": args.width, "rows": rows, "root": str(args.root)}
    content |= {"distances_m": DISTANCES_M, "draws": args.draws, "split": args.split, "data": described(args.root)}
    if args.json is not None:
        with atomic_write(args.json) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def described(root: Path) -> dict[str, Any]:
    """What a synthetic set was made with; empty for others."""
    path = Path(root) / "synthetic.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def cell_of(found: Sequence[float]) -> str:
    """AUC with its interval in a table."""
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})" if np.isfinite(found[0]) else "-"


def sweep_dataset(root: Path, version: str, split: str, back: int) -> BEVDataset:
    """The split with so many sweeps before each key frame."""
    init_default_scope("bevstack")
    steps = [dict(type="LoadMultiViewImages"), dict(type="LoadCameraSweeps", num_sweeps=back)]
    where = dict(data_root=str(root), version=version, split=split)
    return DATASETS.build(dict(type="NuScenesBEVDataset", pipeline=steps, test_mode=True, **where))


def sightings_of(dataset: BEVDataset, width_px: int) -> Iterator[Sighting]:
    """Every vehicle of every sample that a camera sees, with the oldest sweep; images as wide as ``width_px``."""
    vehicles = [label for label, name in enumerate(dataset.classes) if name in VEHICLES]
    for number in range(len(dataset)):
        clip = dataset.clip(number)
        sweeps, objects = clip.frames[-1].sweeps, clip.objects
        if sweeps is None or not len(sweeps.paths):
            raise InputError("motion_oracle", "--root", "its samples have no camera sweeps (create_synthetic --sweeps)")
        speed = np.hypot(*objects.boxes[:, 7:9].T)
        distance = np.hypot(*objects.boxes[:, :2].T)
        seen = np.ones(len(speed), bool) if objects.visibility is None else objects.visibility >= LEAST_SEEN
        near = (distance >= DISTANCES_M[-1][0]) & (distance < DISTANCES_M[-1][1])
        chosen = np.flatnonzero(np.isin(objects.labels, vehicles) & near & seen & np.isfinite(speed))
        flows: dict[int, np.ndarray] = {}
        for row in chosen:
            box = objects.boxes[row].astype(float)
            camera = facing_camera(clip, box)
            if camera is None or sweeps.seconds[0, camera] > -1e-3:
                continue
            if camera not in flows:
                flows[camera] = measured_flow(clip, camera, width_px)
            moved, left = motion_beyond(clip, camera, box, width_px, flows[camera])
            yield Sighting(clip.scene.name, float(distance[row]), float(speed[row]), moved, left)


def facing_camera(clip: ClipRecord, box: np.ndarray) -> int | None:
    """The camera that has a box's centre nearest to the middle of its image; None where none shows it."""
    cameras, least = clip.frames[-1].cameras, np.inf
    best: int | None = None
    for n, size in enumerate(np.asarray(cameras.image_size_px)):
        (pixel,), (depth,) = projected(cameras.pixels_from_camera[n], cameras.camera_from_bev[n], centre_of(box)[None])
        off = abs(pixel[0] / size[1] - 0.5)
        if depth > _LEAST_DEPTH_M and off < 0.5 and 0 <= pixel[1] < size[0] and off < least:
            best, least = n, off
    return best


def centre_of(box: np.ndarray) -> np.ndarray:
    """(3,) centre of a box (9,) whose z is that of its bottom."""
    return np.array([box[0], box[1], box[2] + box[5] / 2])


def projected(pixels_from_camera: np.ndarray, camera_from_bev: np.ndarray, points: np.ndarray) -> tuple:
    """(P, 2) pixels and (P,) depths of points (P, 3) in the BEV frame."""
    seen = (np.c_[points, np.ones(len(points))] @ np.asarray(camera_from_bev).T)[:, :3] @ np.asarray(
        pixels_from_camera
    ).T
    return seen[:, :2] / np.maximum(seen[:, 2:], 1e-6), seen[:, 2]


def visible_points(box: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """(P, 3) points on the faces of a box (9,) that look towards the point ``eye`` (3,)."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    axes = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])  # rows: along length, width, height
    half, centre, points = box[3:6] / 2, centre_of(box), []
    u, v = (part.ravel() for part in np.meshgrid(_GRID, _GRID))
    for face in _FACES:
        normal = face @ axes
        if normal @ (eye - centre - (face * half) @ axes) <= 0:
            continue
        axis = int(np.abs(face).argmax())
        local = np.zeros((len(u), 3))
        local[:, axis] = face[axis]
        local[:, [a for a in range(3) if a != axis]] = np.c_[u, v]
        points.append(centre + (local * half) @ axes)
    return np.concatenate(points) if points else np.zeros((0, 3))


def measured_flow(clip: ClipRecord, camera: int, width_px: int) -> np.ndarray:
    """(H, W, 2) pixels from the key frame to the oldest sweep of a camera, in images as wide as ``width_px``."""
    frame = clip.frames[-1]
    pictures = []
    for path in (frame.cameras.image_paths[camera], frame.sweeps.paths[0][camera] if frame.sweeps else ""):
        grey = cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)
        height = round(grey.shape[0] * width_px / grey.shape[1])
        pictures.append(cv2.resize(grey, (width_px, height), interpolation=cv2.INTER_AREA))
    now, then = pictures
    still = np.zeros((*now.shape, 2), np.float32)  # where the search begins
    estimator: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return estimator.calc(now, then, still)


def motion_beyond(
    clip: ClipRecord, camera: int, box: np.ndarray, width_px: int, flow: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What a box moves in the image beyond what it would if it stood still.

    Args:
        clip: with sweeps, of which the oldest counts.
        camera: its number.
        box: (9,) in the BEV frame, with its velocity.
        width_px: of the images that ``flow`` was measured in.
        flow: (H, W, 2) of :func:`measured_flow`.

    Returns:
        (2,) of the annotated centre, and (2,) the median of the measured flow; NaN where no point is in the image.

    Raises:
        ValueError: the clip has no sweeps.
    """
    frame = clip.frames[-1]
    cameras, sweeps = frame.cameras, frame.sweeps
    if sweeps is None:
        raise ValueError("the clip has no sweeps: LoadCameraSweeps asks the dataset for them")
    pixels_from_camera, camera_from_bev = cameras.pixels_from_camera[camera], cameras.camera_from_bev[camera]
    scale = width_px / np.asarray(cameras.image_size_px)[camera, 1]
    sweep_from_bev = sweeps.sweep_from_camera[0, camera] @ camera_from_bev
    earlier = np.array([*box[7:9], 0.0]) * sweeps.seconds[0, camera]
    centre = centre_of(box)[None]
    then, depth = projected(pixels_from_camera, sweep_from_bev, centre + earlier)
    still, still_depth = projected(pixels_from_camera, sweep_from_bev, centre)
    known = min(depth[0], still_depth[0]) > _LEAST_DEPTH_M
    moved = scale * (then[0] - still[0]) if known else np.full(2, np.nan)

    eye = np.linalg.inv(camera_from_bev)[:3, 3]
    points = visible_points(box, eye)
    now, depth = projected(pixels_from_camera, camera_from_bev, points)
    still, still_depth = projected(pixels_from_camera, sweep_from_bev, points)
    columns, rows = np.floor(scale * now).astype(int).T if len(now) else np.zeros((2, 0), int)
    inside = (depth > _LEAST_DEPTH_M) & (still_depth > _LEAST_DEPTH_M)
    inside &= (columns >= 0) & (rows >= 0) & (columns < flow.shape[1]) & (rows < flow.shape[0])
    if not inside.any():
        return moved, np.full(2, np.nan)
    left = flow[rows[inside], columns[inside]] - scale * (still[inside] - now[inside])
    return moved, np.median(left, axis=0)


def table_rows(sightings: Sequence[Sighting], back: int, noise_px: Sequence[float], draws: int) -> list[dict]:
    """Rows of the table of one time between sweep and key frame.

    Each: ``method``, ``milliseconds``, ``auc`` ([value, low, high] by distance), ``moving`` and ``standing`` (how many
    by distance).

    Raises:
        InputError: no vehicle is seen.
    """
    if not sightings:
        raise InputError("motion_oracle", "--root", "no vehicle is seen between 5 and 30 m")
    names = sorted({one.scene for one in sightings})
    scene = np.array([names.index(one.scene) for one in sightings])
    distance, speed = (np.array([getattr(one, key) for one in sightings]) for key in ("distance_m", "speed"))
    pixels, flow = (np.stack([getattr(one, key) for one in sightings]) for key in ("pixels", "flow"))
    rng, times = np.random.default_rng(0), drawn_times(len(names), draws)
    methods = {f"pixels, noise {sigma:g} px": pixels + rng.normal(0, sigma, pixels.shape) for sigma in noise_px}
    rows = []
    for method, left in {**methods, "flow": flow}.items():
        score = np.hypot(*left.T)
        row: dict[str, Any] = {"method": method, "milliseconds": round(1000 * back / 12), "auc": []}
        row |= {"moving": [], "standing": []}
        for low, high in DISTANCES_M:
            own = (distance >= low) & (distance < high) & np.isfinite(score)
            moving = speed[own] > MOVING_MPS
            row["auc"].append(list(interval(area_under_curve(score[own], moving, scene[own], times))))
            row["moving"].append(int(moving.sum()))
            row["standing"].append(int((~moving).sum()))
        rows.append(row)
    return rows


def area_under_curve(score: np.ndarray, positive: np.ndarray, scene: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(draws,) probability that a positive's score is above a negative's, equal ones counting half; NaN of one kind.

    Args:
        score: (n,). positive: (n,) bool. scene: (n,) number of each one's scene.
        times: (draws, scenes) how often each scene counts.
    """
    values = np.full(len(times), np.nan)
    if not len(score):
        return values
    _, place = np.unique(score, return_inverse=True)
    for draw, often in enumerate(times):
        weights = often[scene].astype(float)
        yes, no = (np.bincount(place, weights * kind, place.max() + 1) for kind in (positive, ~positive))
        if yes.sum() and no.sum():
            values[draw] = (yes * (no.cumsum() - no / 2)).sum() / (yes.sum() * no.sum())
    return values

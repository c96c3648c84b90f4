"""Whether the numbers of info files mean what they are taken to mean: cameras, boxes' origin, sizes and yaws.

Nothing in such a file names its conventions, and files that break them train without an error. What is said twice is
compared: ``lidar2cam`` with calibrations and poses, yaws with velocities, sizes with what vehicles look like, boxes'
feet with the ground.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bevstack.datasets.nuscenes.info_records import InfoCamera, InfoFile, InfoSample
from bevstack.datasets.nuscenes.taxonomy import VEHICLE_CLASSES
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse

CONVENTIONS = ("mmdet3d-0", "mmdet3d-1")
"""Boxes of mmdet3d before 1.0: sizes (width, length, height), yaw clockwise from -y; since then: (length, width,
height), yaw counter-clockwise from +x. Both with the boxes' middles."""

CAMERA_LIMIT_M, CAMERA_LIMIT_DEG = 0.3, 5.0
_NEAR_M, _FEET_M, _FAR_OFF_M = 40.0, 0.4, 2.0
_MOVING_MPS, _FEW = 1.0, 3


def check_cameras(file: InfoFile, scenes: Sequence[Sequence[InfoSample]]) -> None:
    """Each camera stands where its calibration and the ego's poses put it, within 0.3 m and 5 degrees.

    Args:
        file: for messages. scenes: its samples, scene by scene in order of time.

    Raises:
        InputError: names the field, by how much it is off, and the slip that explains it where one is known.
    """
    off: list[tuple[InfoSample, str, float, float, np.ndarray]] = []
    total = 0
    for scene in scenes:
        speeds = _ego_velocities(scene)
        for sample, velocity in zip(scene, speeds, strict=True):
            for channel, camera in sample.cameras.items():
                expected, slack_m = _expected(sample, camera, velocity)
                metres = float(np.linalg.norm(_position(camera.camera_from_lidar) - _position(expected)))
                degrees = _turn_deg(camera.camera_from_lidar[:3, :3] @ expected[:3, :3].T)
                total += 1
                if metres > CAMERA_LIMIT_M + slack_m or degrees > CAMERA_LIMIT_DEG:
                    off.append((sample, channel, metres, degrees, expected))
    if off:
        sample, channel, metres, degrees, expected = off[0]
        camera = sample.cameras[channel]
        cause = _slip(camera, expected)
        reason = f"puts the camera {metres:.2f} m and {degrees:.1f} degrees from where its calibration and the ego "
        reason += f"poses put it (limits: {CAMERA_LIMIT_M} m, {CAMERA_LIMIT_DEG:g} degrees){cause}; so {len(off)} of "
        raise InputError(file.path, camera.place, f"{reason}{total} cameras")


def _position(camera_from_lidar: np.ndarray) -> np.ndarray:
    return rigid_inverse(camera_from_lidar)[:3, 3]


def _turn_deg(rotation: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def _expected(sample: InfoSample, camera: InfoCamera, velocity: np.ndarray | None) -> tuple[np.ndarray, float]:
    """(4, 4) ``camera_from_lidar`` of calibrations and poses, and metres by which the poses may be wrong.

    Where the camera's own ego pose is not told, the car drives on from the lidar's as its neighbours say.
    """
    if camera.global_from_ego is not None:
        there, slack_m = camera.global_from_ego, 0.0
    else:
        seconds = 1e-6 * (camera.timestamp_us - sample.timestamp_us)
        there = sample.global_from_ego.copy()
        there[:3, 3] += (np.zeros(3) if velocity is None else velocity) * seconds
        slack_m = abs(seconds) * (40.0 if velocity is None else 0.5 * float(np.linalg.norm(velocity)))
    return rigid_inverse(there @ camera.ego_from_camera) @ sample.global_from_lidar, slack_m


def _ego_velocities(scene: Sequence[InfoSample]) -> list[np.ndarray | None]:
    """Per sample (3,) m/s of the ego in global axes, by the samples around it; None for one that stands alone."""
    found: list[np.ndarray | None] = []
    for n in range(len(scene)):
        before, after = scene[max(n - 1, 0)], scene[min(n + 1, len(scene) - 1)]
        seconds = 1e-6 * (after.timestamp_us - before.timestamp_us)
        way = after.global_from_ego[:3, 3] - before.global_from_ego[:3, 3]
        found.append(way / seconds if seconds > 0 else None)
    return found


def _slip(camera: InfoCamera, expected: np.ndarray) -> str:
    """The known slip that explains a wrong ``camera_from_lidar``, in words."""
    given = camera.camera_from_lidar
    never = given.copy()
    never[:3, 3] = given[:3, :3] @ given[:3, 3]
    transposed = given.copy()
    transposed[:3, :3] = given[:3, :3].T
    slips = {
        "its translation was never inverted (mmdet3d's converter wrote -T for -R T), so that boxes stand beside what "
        "the images show": never,
        "it leads from the camera to the lidar": rigid_inverse(given),
        "its rotation is transposed": transposed,
    }
    for words, mended in slips.items():
        near = np.linalg.norm(_position(mended) - _position(expected)) <= CAMERA_LIMIT_M
        if near and _turn_deg(mended[:3, :3] @ expected[:3, :3].T) <= CAMERA_LIMIT_DEG:
            return f": {words}"
    return ""


def box_convention(file: InfoFile, asked: str | None = None) -> str:
    """Which of :data:`CONVENTIONS` a file's boxes follow, by vehicles' sizes and by the yaws of those that drive.

    Args:
        file: of either style.
        asked: what the user says it is; None for what the numbers say.

    Raises:
        InputError: sizes and yaws speak for different conventions, or for none; for another than ``asked``; a
            ``data_list`` has boxes of mmdet3d before 1.0, which mmdet3d 1.x would train on as they are; or nothing
            speaks for either.
    """
    field = f"{file.style}.{'bbox_3d' if file.style == 'data_list' else 'gt_boxes'}"
    boxes = np.concatenate([sample.boxes for sample in file.samples])
    velocity = np.concatenate([sample.velocity for sample in file.samples])
    names = np.array([name for sample in file.samples for name in sample.names], dtype=object)
    vehicles = np.isin(names, VEHICLE_CLASSES)
    sizes, sizes_say = _by_sizes(boxes[vehicles])
    yaws, yaws_say = _by_yaws(file, field, boxes[vehicles], velocity[vehicles])
    if sizes and yaws and sizes != yaws:
        reason = f"{sizes_say}, as {sizes} writes sizes, but {yaws_say}, as {yaws} writes yaws: of no version"
        raise InputError(file.path, field, reason)
    found, says = sizes or yaws, " and ".join(words for words in (sizes_say, yaws_say) if words)
    if asked is not None and found is not None and asked != found:
        raise InputError(file.path, "--convention", f"is {asked}, but in {field} {says}, as {found} writes them")
    if file.style == "data_list" and found == "mmdet3d-0" and asked is None:
        reason = f"{says}: boxes of mmdet3d before 1.0 in a file of 1.x, which would train 1.x wrongly; make it again "
        raise InputError(file.path, field, reason + "with mmdet3d 1.x, or say --convention mmdet3d-0")
    if len(boxes) == 0 or (file.style == "data_list" and found is None):
        return asked or "mmdet3d-1"
    if found is None and asked is None:
        reason = f"nothing in {len(boxes)} boxes tells sizes and yaws of mmdet3d before 1.0 from those since: say "
        raise InputError(file.path, field, f"{reason}--convention mmdet3d-0 (the published BEVFormer's) or mmdet3d-1")
    return asked or found or "mmdet3d-1"


def _by_sizes(boxes: np.ndarray) -> tuple[str | None, str]:
    if not len(boxes):
        return None, ""
    share = float(np.mean(boxes[:, 3] > boxes[:, 4]))
    if 0.2 <= share <= 0.8:
        return None, ""
    words = f"{max(share, 1 - share):.0%} of {len(boxes)} vehicles are longer {'first' if share > 0.8 else 'second'}"
    return CONVENTIONS[share > 0.8], words


def _by_yaws(file: InfoFile, field: str, boxes: np.ndarray, velocity: np.ndarray) -> tuple[str | None, str]:
    drives = np.linalg.norm(velocity, axis=1) > _MOVING_MPS  # NaN does not
    if drives.sum() < _FEW:
        return None, ""
    way, given = np.arctan2(velocity[drives, 1], velocity[drives, 0]), boxes[drives, 6]
    agree = [float(np.cos(heading - way).mean()) for heading in (-given - np.pi / 2, given)]
    words = f"{drives.sum()} driving vehicles head where they drive"
    if max(agree) < 0.5:
        turned = {"turned by half a turn": -agree[1], "counted from +y": float(np.cos(given + np.pi / 2 - way).mean())}
        turned["clockwise from +x"] = float(np.cos(-given - way).mean())
        best = max(turned, key=lambda name: turned[name])
        cause = f"; they seem {best}" if turned[best] > 0.5 else "; or velocities are not in the lidar's axes"
        reason = f"{drives.sum()} driving vehicles do not head where they drive, by either version's yaws "
        raise InputError(file.path, field, f"{reason}(mean cosine {agree[0]:.2f} and {agree[1]:.2f}){cause}")
    if abs(agree[0] - agree[1]) < 0.3:
        return None, ""
    return CONVENTIONS[agree[1] > agree[0]], words


def check_feet(file: InfoFile) -> None:
    """Boxes stand on the ground: their coordinates are those of their middles, in the lidar's frame.

    Raises:
        InputError: they float or are buried, and the origin or frame that explains it.
    """
    feet, middles, as_ego = [], [], []
    for sample in file.samples:
        near = np.linalg.norm(sample.boxes[:, :2], axis=1) < _NEAR_M
        centers, half = sample.boxes[near, :3], sample.boxes[near, 5] / 2
        in_ego = centers @ sample.ego_from_lidar[:3, :3].T + sample.ego_from_lidar[:3, 3]
        middles.append(in_ego[:, 2])
        feet.append(in_ego[:, 2] - half)
        as_ego.append(centers[:, 2] - half)
    found = [
        float(np.median(values)) if values.size else 0.0 for values in map(np.concatenate, (feet, middles, as_ego))
    ]
    off = abs(found[0])
    if off <= _FEET_M:
        return
    field = f"{file.style}.{'bbox_3d' if file.style == 'data_list' else 'gt_boxes'}"
    how = f"the feet of boxes within {_NEAR_M:g} m are {found[0]:+.2f} m above the ground (median)"
    if abs(found[1]) < off / 2:
        reason = "z is that of lower faces, where info files hold the middle (origin 0.5, 0.5, 0.5)"
        raise InputError(file.path, field, f"{how}: {reason}")
    if abs(found[2]) < off / 2:
        raise InputError(file.path, field, f"{how}: the boxes are in the ego car's frame, not in the lidar's")
    if off > _FAR_OFF_M:
        raise InputError(file.path, field, f"{how}: in which frame are they?")

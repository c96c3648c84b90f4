"""Images of a folder as moments: which file is of which camera, and which files belong together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from bevstack.engine.rig_file import MomentRecord
from bevstack.errors import InputError

ENDINGS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Of files that are taken for images."""


def find_moments(given: Sequence[Path], cameras: Sequence[str]) -> list[MomentRecord]:
    """The moments of a folder or of files, in their order.

    A folder has either a folder for each camera, called as the camera, or files whose names hold a camera's name
    (``CAM_FRONT.jpg``, ``0001_CAM_FRONT.jpg``). What is left of a file's name says the moment; where no two cameras
    share any (time stamps), the n-th files of all cameras belong together. As many files as cameras, none of which
    names one, are one moment in the order of the rig.

    Args:
        given: one folder, or files.
        cameras: of the rig.

    Raises:
        InputError: nothing is there, a file is of no camera, or the cameras' files do not go together.
    """
    for path in given:
        if not path.exists():
            raise InputError(path, "--images", "no such file or folder")
    folders = [path for path in given if path.is_dir()]
    if folders and len(given) > 1:
        raise InputError(folders[0], "--images", "give one folder, or files")
    source = folders[0] if folders else given[0]
    by_camera = _of_folders(source, cameras) if folders else {}
    files = [] if by_camera else _images_in(source) if folders else list(given)
    if not by_camera and not files:
        raise InputError(source, "--images", f"holds no image ({', '.join(ENDINGS)})")
    if not folders and len(files) == len(cameras) and not any(camera_of(file.stem, cameras) for file in files):
        return [MomentRecord("000000", dict(zip(cameras, files, strict=True)), place=(str(source), "--images"))]
    for file in files:
        camera = camera_of(file.stem, cameras)
        if not camera:
            reason = f"its name holds no camera of the rig ({', '.join(cameras)})"
            raise InputError(file, "--images", reason)
        _add(by_camera.setdefault(camera, {}), file.stem.replace(camera, "").strip("_-. "), file)
    return _paired(by_camera, cameras, source)


def camera_of(stem: str, cameras: Sequence[str]) -> str:
    """The camera whose name a file's name holds, as a word of it; the longest, as CAM_FRONT_LEFT holds CAM_FRONT, too.

    "" where there is none.
    """
    found = [name for name in cameras if re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", stem)]
    return max(found, key=len, default="")


def with_images(records: Sequence[MomentRecord], found: Sequence[MomentRecord]) -> list[MomentRecord]:
    """Records of poses with the images of a folder: by name where every pose has one of them, else by the order.

    Args:
        records: with poses, some or none with images of their own.
        found: of :func:`find_moments`.

    Raises:
        InputError: there are more or fewer poses than moments.
    """
    by_name = {record.name: record for record in found}
    if all(record.name in by_name for record in records):
        return [replace(record, images=own_or(record, by_name[record.name])) for record in records]
    if len(records) != len(found):
        reason = f"{len(records)} poses for the {len(found)} moments of the images; say name or images with each"
        raise InputError(records[0].place[0], "moments", reason)
    return [replace(record, images=own_or(record, other)) for record, other in zip(records, found, strict=True)]


def own_or(record: MomentRecord, other: MomentRecord) -> Mapping[str, Path] | None:
    """A record's own images, another's where it says nothing of images."""
    return other.images if record.images is None else record.images


def require_files(records: Sequence[MomentRecord]) -> None:
    """Refuse moments whose images are not there, before a model is loaded for them."""
    for record in records:
        file, spot = record.place
        if not record.images:
            raise InputError(file, f"{spot}.images" if spot else "images", "absent: no camera has an image")
        for camera, path in record.images.items():
            if not path.is_file():
                raise InputError(path, f"{camera}", f"no such image ({file})")


def in_order(text: str) -> list[tuple[int, int, str]]:
    """A key that sorts names by the numbers in them: a2 before a10."""
    parts = re.findall(r"\d+|\D+", text)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _images_in(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    return sorted(found, key=lambda path: in_order(path.stem))


def _of_folders(folder: Path, cameras: Sequence[str]) -> dict[str, dict[str, Path]]:
    """By camera and name, the files of folders that are called as cameras."""
    by_camera: dict[str, dict[str, Path]] = {}
    for camera in cameras:
        if (folder / camera).is_dir():
            for file in _images_in(folder / camera):
                key = file.stem.replace(camera, "").strip("_-. ") if camera_of(file.stem, cameras) else file.stem
                _add(by_camera.setdefault(camera, {}), key, file)
    return by_camera


def _add(files: dict[str, Path], key: str, file: Path) -> None:
    if key in files:
        raise InputError(file, "--images", f"is of the same camera and moment as {files[key].name}")
    files[key] = file


def _paired(by_camera: Mapping[str, Mapping[str, Path]], cameras: Sequence[str], source: Path) -> list[MomentRecord]:
    """Moments of files by camera and what their names say."""
    place = (str(source), "--images")
    counts = {camera: len(files) for camera, files in by_camera.items()}
    keys = [key for files in by_camera.values() for key in files]
    shared = len(set(keys)) < len(keys) or len(by_camera) == 1
    if shared and max(counts.values()) > 1:
        names = sorted(set(keys), key=in_order)
        together = [
            {camera: by_camera[camera][name] for camera in cameras if name in by_camera.get(camera, {})}
            for name in names
        ]
    else:
        if len(set(counts.values())) > 1:
            listed = ", ".join(f"{camera} {number}" for camera, number in counts.items())
            reason = f"the cameras' files share no names and are not equally many: {listed}"
            raise InputError(source, "--images", reason)
        ordered = {camera: sorted(files, key=in_order) for camera, files in by_camera.items()}
        number = next(iter(counts.values()))
        together = [
            {camera: by_camera[camera][ordered[camera][n]] for camera in cameras if camera in by_camera}
            for n in range(number)
        ]
        names = [f"{n:06d}" for n in range(number)]
        if number == 1 and len(set(keys)) == 1 and keys[0]:
            names = [keys[0]]
    return [MomentRecord(name or "000000", images, place=place) for name, images in zip(names, together, strict=True)]

"""Everything that is wrong with a root in nuScenes' format, at once and counted: the work of ``tools/check_data.py``.

An index is refused at the first fault (:mod:`bevstack.datasets.nuscenes.table_checks`). Who mends a converter wants all
of them: here the same checks run over ever smaller parts of a table, so that each record that is wrong counts, and
faults of one kind stand in one line with the first of them. Imports the devkit.
"""

from __future__ import annotations

import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.can_bus import read_can_bus
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.datasets.nuscenes.map_expansion import MapExpansion
from bevstack.datasets.nuscenes.sample_rows import IndexChoices
from bevstack.datasets.nuscenes.table_checks import TABLE_FIELDS, check_records, reference_checks
from bevstack.datasets.nuscenes.tables import NuScenesTables, read_splits, require_version
from bevstack.datasets.plausibility import Finding
from bevstack.errors import InputError
from bevstack.images import read_image, stored_size_px

MOST_FAULTS = 1000
"""Of a check, that are counted one by one; there may be more."""

_POINT_BYTES = 20
_HEADER_BYTES = 65_536  # of an image; a JPEG's size stands behind its metadata


@dataclass(frozen=True)
class FaultKind:
    """Faults of one kind: how many, and the first of them."""

    count: int
    first: InputError

    @property
    def counted(self) -> str:
        """The count, as text: from :data:`MOST_FAULTS` on it is a lower bound."""
        return f"{self.count}" if self.count < MOST_FAULTS else f"{MOST_FAULTS} or more"


@dataclass(frozen=True)
class DataReport:
    """What was found: ``faults`` that have to be mended, and, where there is none, what is ``plausible`` and not."""

    faults: tuple[FaultKind, ...]
    plausible: tuple[Finding, ...] = ()
    remarks: tuple[str, ...] = ()


class _ReadTables(NuScenesTables):
    """Tables as they are read, before any check and any link between them."""

    def __init__(self, root: Path, version: str, faults: list[InputError]) -> None:
        self.version, self.dataroot, self.verbose = version, str(root), False
        self.deviations = {}
        self.read: dict[str, list] = {}
        for name in TABLE_FIELDS:
            try:
                self.read[name] = self.__load_table__(name)
            except InputError as error:
                faults.append(error)


def check_data(
    root: str | Path, version: str, decode: bool = False, progress: Callable[[str], None] = lambda text: None
) -> DataReport:
    """Look at tables, links, splits, images, lidar points, CAN bus and maps of a version.

    Args:
        root: dataset root.
        version: folder of the tables.
        decode: whether to decode every key frame's image; else its file and the size in its header are looked at.
        progress: called with what is looked at next.

    Raises:
        InputError: there is no such root or version.
    """
    root, folder = Path(root), require_version(root, version)
    unreadable: list[InputError] = []
    progress("reading the tables")
    tables = _ReadTables(root, version, unreadable)
    found = [FaultKind(1, error) for error in unreadable]
    for name, records in tables.read.items():
        progress(f"checking {name}")
        found += _by_kind(_table_faults(folder / f"{name}.json", name, records))
    remarks = tuple(f"{count} {words}" for words, count in tables.deviations.items())
    if found:
        return DataReport(tuple(found), remarks=(*remarks, "links, images and plausibility: once these are mended"))
    progress("checking links")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found += _link_faults(folder, tables.read)
        if not found:
            for look in (_split_faults, _image_faults(decode), _lidar_faults, _bus_faults, _map_faults):
                progress(f"checking {look.__name__.strip('_').removesuffix('_faults')}")
                found += _by_kind(look(root, folder, tables.read))
        if found:
            return DataReport(tuple(found), remarks=(*remarks, "plausibility: once these are mended"))
        progress("judging plausibility")
        with tempfile.TemporaryDirectory() as away:
            try:
                summary = write_index(root, version, away, False, IndexChoices(), progress=lambda text: None)
            except InputError as error:
                return DataReport((FaultKind(1, error),), remarks=remarks)
    return DataReport((), tuple(summary["findings"]), remarks)


def single_faults(records: list, check: Callable[[list], None]) -> Iterator[InputError]:
    """The faults of records one by one: a part without a fault is left in one step, others are halved.

    Where the halves are right and the whole is not, its fault is one of the records together.
    """
    try:
        check(records)
    except InputError as error:
        if len(records) > 1:
            middle = len(records) // 2
            parts = [*single_faults(records[:middle], check), *single_faults(records[middle:], check)]
            yield from parts or [error]
        else:
            yield error


def _by_kind(faults: Iterator[InputError]) -> list[FaultKind]:
    """Faults of one file, field and reason but for tokens and values, together."""
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], InputError] = {}
    for number, fault in enumerate(faults):
        field = fault.field.rpartition(".")[2] if "." in fault.field else re.sub(r"\d+", "N", fault.field)
        words = re.sub(r"'[^']*'|\[[^]]*\]|[\w.+-]*\d[\w.+-]*", "*", fault.reason)
        file = fault.file if fault.file.endswith(".json") else str(Path(fault.file).parent)
        counts[file, field, words] += 1
        first.setdefault((file, field, words), fault)
        if number + 1 >= MOST_FAULTS:
            break
    return [FaultKind(count, first[kind]) for kind, count in counts.items()]


def _table_faults(path: Path, table: str, records: list) -> Iterator[InputError]:
    if not records:
        try:
            check_records(path, table, records)
        except InputError as error:
            yield error
        return
    for fault in single_faults(records, partial(check_records, path, table)):
        if "stands twice" not in fault.reason:  # those are counted below, wherever in the table they stand
            yield fault
    named = [record.get("token") for record in records if isinstance(record, dict)]
    often = Counter(token for token in named if isinstance(token, str))
    for token, count in often.items():
        if count > 1:
            yield InputError(path, f"{token}.token", f"{token} stands {count} times in the table")


def _link_faults(folder: Path, tables: dict[str, list]) -> list[FaultKind]:
    found: list[FaultKind] = []
    for records, check in reference_checks(folder, tables):
        try:
            found += _by_kind(single_faults(records, check))
        except (KeyError, TypeError):  # it walks along links that an earlier check has found broken
            if not found:
                raise
    return found


def _split_faults(root: Path, folder: Path, tables: dict[str, list]) -> Iterator[InputError]:
    try:
        read_splits(folder, tables["scene"])
    except InputError as error:
        yield error


def _key_frames(tables: dict[str, list], modality: str) -> Iterator[dict]:
    kind = {sensor["token"]: sensor["modality"] for sensor in tables["sensor"]}
    sensor = {record["token"]: kind[record["sensor_token"]] for record in tables["calibrated_sensor"]}
    for record in tables["sample_data"]:
        if record["is_key_frame"] and sensor[record["calibrated_sensor_token"]] == modality:
            yield record


def _image_faults(decode: bool) -> Callable[[Path, Path, dict[str, list]], Iterator[InputError]]:
    def image_faults(root: Path, folder: Path, tables: dict[str, list]) -> Iterator[InputError]:
        for record in _key_frames(tables, "camera"):
            path, size = root / record["filename"], (int(record["height"]), int(record["width"]))
            if ".." in path.parts or not path.is_relative_to(root):
                yield InputError(folder / "sample_data.json", f"{record['token']}.filename", "leads out of the root")
                continue
            try:
                if decode:
                    read_image(path, size)
                else:
                    _look_at(path, size)
            except InputError as error:
                yield error

    return image_faults


def _look_at(path: Path, size_px: tuple[int, int]) -> None:
    """Refuse an image that is not there or empty, or whose header tells another (height, width)."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(path, "image", error.strerror or "cannot be read") from None
    if not start:
        raise InputError(path, "image", "the file is empty")
    stored = stored_size_px(start)
    if stored is not None and stored != size_px:
        raise InputError(path, "size", f"{stored[1]}x{stored[0]}, the table says {size_px[1]}x{size_px[0]}")


def _lidar_faults(root: Path, folder: Path, tables: dict[str, list]) -> Iterator[InputError]:
    """Points are never read by a camera model; files that are there have to be whole all the same."""
    for record in _key_frames(tables, "lidar"):
        path = root / record["filename"]
        if path.name.endswith(".pcd.bin") and path.is_file() and path.stat().st_size % _POINT_BYTES:
            reason = f"{path.stat().st_size} bytes are no whole number of points of {_POINT_BYTES} bytes"
            yield InputError(path, "points", reason)


def _bus_faults(root: Path, folder: Path, tables: dict[str, list]) -> Iterator[InputError]:
    for scene in tables["scene"]:
        try:
            read_can_bus(root, [(scene["name"], np.zeros(1, dtype=np.int64))])
        except InputError as error:
            yield error


def _map_faults(root: Path, folder: Path, tables: dict[str, list]) -> Iterator[InputError]:
    for location in sorted({log["location"] for log in tables["log"]}):
        path = root / "maps" / "expansion" / f"{location}.json"
        if path.is_file():
            try:
                MapExpansion.read(path)
            except InputError as error:
                yield error

"""Reads nuScenes tables through the devkit, once, and says in one line what is wrong with them.

Imports the devkit (about 2 s): import this module only where tables are read.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from bevstack.datasets.nuscenes.table_checks import TABLE_FIELDS, check_records, check_references
from bevstack.datasets.nuscenes.table_files import file_sha256, read_json
from bevstack.datasets.nuscenes.taxonomy import scored_category
from bevstack.errors import InputError

OPTIONAL_TABLES = ("attribute", "visibility", "log")
"""Tables that may be absent: what refers to them may be empty."""

_EMPTY_TEXTS: dict[str, tuple[str, ...]] = {
    "sample": ("prev", "next"),
    "sample_data": ("prev", "next"),
    "sample_annotation": ("prev", "next", "visibility_token"),
    "scene": ("log_token", "description"),
}


class NuScenesTables(NuScenes):
    """The devkit's ``NuScenes`` of the tables that are read here, as index and scoring see them.

    Not read, and so free to be absent or wrong: map.json and its masks, lidarseg.json, panoptic.json and their label
    files, image_annotations.json. attribute.json, visibility.json and log.json may be absent. Absolute names of files
    below the root become relative ones. Other sets' ways of saying "none" become nuScenes': ``null`` is "" in links,
    visibility and logs and 0 in sizes; a number of lidar points that is ``null`` or negative was not counted and
    becomes 1 (seen), of radar points 0; of several attributes the first one counts. Where a category bears the name of
    a class of the detection task, ``category_name`` of its boxes is one of that class, so that the devkit scores what
    the dataset labels (:func:`bevstack.datasets.nuscenes.taxonomy.detection_class`).

    Args:
        root: folder that holds ``version`` and ``samples``.
        version: name of the tables' folder.

    Attributes:
        deviations: what was read otherwise than it stands there, in words -> how often.

    Raises:
        InputError: a table is missing or no JSON, or the devkit cannot make sense of them.
    """

    def __init__(self, root: str | Path, version: str) -> None:
        self.version, self.dataroot, self.verbose = version, str(root), False
        self.deviations: dict[str, int] = {}
        folder = require_version(root, version)
        self.table_names = [*TABLE_FIELDS, "map"]
        for name in TABLE_FIELDS:
            setattr(self, name, self.__load_table__(name))
        # The devkit leads from each log to a map; nothing here goes that way.
        self.map = [{"token": "", "filename": "", "log_tokens": [log["token"] for log in self.log]}]
        try:
            self.__make_reverse_index__(False)
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(
                folder, "tables", f"do not fit together: {error!r}; run create_data, it says why"
            ) from error
        for box in self.sample_annotation:
            box["category_name"] = scored_category(box["category_name"])

    def __load_table__(self, table_name: str) -> list[dict]:
        path = Path(self.table_root) / f"{table_name}.json"
        if table_name in OPTIONAL_TABLES and not path.exists():
            return []
        records = read_json(path)
        if not isinstance(records, list):
            raise InputError(path, "content", f"must be a list of records, not {type(records).__name__}")
        return self._as_nuscenes(table_name, records)

    def _as_nuscenes(self, table: str, records: list) -> list:
        """Bring other sets' words for "none" into nuScenes' form; what is no record is left to the checks."""
        whole = [record for record in records if isinstance(record, dict)]
        for record in whole:
            for field in _EMPTY_TEXTS.get(table, ()):
                if field in record and record[field] is None:
                    record[field] = ""
            if table == "scene":
                record.setdefault("log_token", "")
            if table == "sample_data":
                for field in ("height", "width"):
                    record[field] = 0 if record.get(field) is None else record[field]
                name = record.get("filename")
                if isinstance(name, str) and (name[:1] in "/." or "\\" in name):
                    record["filename"] = self._below_root(name)
            if table == "sample_annotation":
                self._count_points(record)
                attributes = record.get("attribute_tokens")
                if isinstance(attributes, list) and len(attributes) > 1:
                    record["attribute_tokens"] = attributes[:1]
                    self._note("boxes with several attributes, of which the first one counts")
        return records

    def _below_root(self, name: str) -> str:
        """A file's name relative to the root, where it is absolute and inside, starts with ./ or has backslashes."""
        name = name.replace("\\", "/").removeprefix("./")
        for root in (Path(self.dataroot).absolute(), Path(self.dataroot).resolve()):
            name = name.removeprefix(f"{root}/")
        return name

    def _count_points(self, box: dict) -> None:
        for field, seen in (("num_lidar_pts", 1), ("num_radar_pts", 0)):
            value = box.get(field, 0)
            if value is None or (type(value) in (int, float) and value < 0):
                box[field] = seen
                if seen:
                    self._note("boxes whose lidar points were not counted (null or negative), taken as seen")

    def _note(self, words: str) -> None:
        self.deviations[words] = self.deviations.get(words, 0) + 1


class CheckedTables(NuScenesTables):
    """Tables that are hashed and checked while they are loaded.

    Args:
        root, version: as :class:`NuScenesTables`.
        progress: called with the name of each table before it is read.
        own_categories: names of categories that are near nuScenes' own, and meant so.

    Attributes:
        table_files: name -> {"sha256", "bytes", "mtime_ns"} of every table that was read.

    Raises:
        InputError: the tables are missing, malformed or do not fit together
            (:mod:`bevstack.datasets.nuscenes.table_checks`).
    """

    def __init__(
        self,
        root: str | Path,
        version: str,
        progress: Callable[[str], None] | None = None,
        own_categories: tuple[str, ...] = (),
    ) -> None:
        self.table_files: dict[str, dict[str, str | int]] = {}
        self._progress = progress or (lambda name: None)
        self._own_categories = own_categories
        super().__init__(root, version)
        for words, count in self.deviations.items():
            warnings.warn(f"{self.table_root}: {count} {words}", stacklevel=2)

    def __load_table__(self, table_name: str) -> list[dict]:
        self._progress(table_name)
        records = super().__load_table__(table_name)
        path = Path(self.table_root) / f"{table_name}.json"
        check_records(path, table_name, records)
        if path.exists():
            stat = path.stat()
            self.table_files[table_name] = {
                "sha256": file_sha256(path),
                "bytes": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
            }
        return records

    def __make_reverse_index__(self, verbose: bool) -> None:
        self._progress("references")
        tables = {name: getattr(self, name) for name in TABLE_FIELDS}
        check_references(Path(self.table_root), tables, self._own_categories)
        super().__make_reverse_index__(verbose)


def require_version(root: str | Path, version: str, field: str = "--version") -> Path:
    """The folder of a version's tables.

    Raises:
        InputError: root or folder are not there; names the versions that are.
    """
    root, folder = Path(root), Path(root) / version
    if not root.is_dir():
        raise InputError(root, "--root" if field.startswith("--") else "data_root", "no such folder")
    if not folder.is_dir():
        versions = sorted(path.parent.name for path in root.glob("*/scene.json"))
        above = sorted(path.parent.name for path in root.glob("../*/scene.json"))
        below = sorted(path.parts[-3] for path in root.glob("*/*/scene.json"))
        hint = f"; there are {', '.join(versions)}" if versions else "; no version's tables are here"
        if not versions and (above or below):
            hint += f": is the root {root.parent if above else root / below[0]}?"
        raise InputError(folder, field, f"no such folder{hint}")
    return folder


def bev_lidar(lidars: list[str]) -> str:
    """The lidar whose frame is the BEV's where none is named: LIDAR_TOP, or else the first one."""
    return "LIDAR_TOP" if "LIDAR_TOP" in lidars else lidars[0]


def read_splits(folder: str | Path, scenes: list[dict]) -> dict[str, list[str]]:
    """Scene tokens of every split: of splits.json in ``folder``, or the devkit's own, and ``all``.

    splits.json names scenes by their name or token. Where it gives one of the devkit's names (train, val, test,
    mini_train, ...), none of the devkit's splits is taken: they would share scenes with it. ``all`` is every scene,
    unless splits.json says otherwise. A split without scenes is left out.

    Args:
        folder: of the version's tables.
        scenes: records of scene.json.

    Raises:
        InputError: splits.json is no object of lists of scenes, names an unknown one, or one of two by their name.
    """
    tokens: dict[str, list[str]] = {}
    for scene in scenes:
        tokens.setdefault(scene["name"], []).append(scene["token"])
    path = Path(folder) / "splits.json"
    custom = read_json(path) if path.exists() else {}
    if not isinstance(custom, dict):
        raise InputError(path, "content", "must be an object: split name -> list of scene names")
    official = create_splits_scenes()
    splits = {"all": [scene["token"] for scene in scenes]}
    if not official.keys() & custom.keys():
        splits |= {name: [t for s in named for t in tokens.get(s, ())] for name, named in official.items()}
    known = {scene["token"] for scene in scenes}
    for split, named in custom.items():
        if not isinstance(named, list) or not all(isinstance(s, str) for s in named):
            raise InputError(path, split, "must be a list of scene names")
        for name in named:
            if name not in tokens and name not in known:
                raise InputError(path, split, f"{name} is no scene of {Path(folder).name}")
            if name not in known and len(tokens[name]) > 1:
                reason = f"{name} is the name of {len(tokens[name])} scenes: give their tokens, as {tokens[name][0]}"
                raise InputError(path, split, reason)
        splits[split] = [name if name in known else tokens[name][0] for name in named]
    return {name: members for name, members in splits.items() if members}

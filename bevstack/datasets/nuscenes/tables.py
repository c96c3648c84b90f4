"""Reads nuScenes tables through the devkit, once, and says in one line what is wrong with them.

Imports the devkit (about 2 s): import this module only where tables are read.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nuscenes.nuscenes import NuScenes
from nuscenes.utils.splits import create_splits_scenes

from bevstack.datasets.nuscenes.table_checks import TABLE_FIELDS, check_records, check_references
from bevstack.datasets.nuscenes.table_files import file_sha256, read_json
from bevstack.errors import InputError

UNUSED_TABLES = ("image_annotations",)


class CheckedNuScenes(NuScenes):
    """The devkit's ``NuScenes``, whose tables are hashed and checked while it loads them.

    Args:
        root: folder that holds ``version``, ``samples`` and ``maps``.
        version: name of the tables' folder.
        progress: called with the name of each table before it is read.

    Attributes:
        table_files: name -> {"sha256", "bytes", "mtime_ns"} of every table that was read.

    Raises:
        InputError: the tables are missing, malformed or do not fit together
            (:mod:`bevstack.datasets.nuscenes.table_checks`).
    """

    def __init__(self, root: str | Path, version: str, progress: Callable[[str], None] | None = None) -> None:
        self.table_files: dict[str, dict[str, str | int]] = {}
        self._progress = progress or (lambda name: None)
        folder = Path(root) / version
        if not Path(root).is_dir():
            raise InputError(root, "--root", "no such folder")
        if not folder.is_dir():
            versions = sorted(p.parent.name for p in Path(root).glob("*/scene.json"))
            hint = f"; there are {', '.join(versions)}" if versions else "; no version's tables are here"
            raise InputError(folder, "--version", f"no such folder{hint}")
        try:
            super().__init__(version=version, dataroot=str(root), verbose=False)
        except (AssertionError, KeyError, IndexError, OSError) as error:
            raise InputError(folder, "tables", f"the devkit refuses them: {error!r}") from error

    def __load_table__(self, table_name: str) -> list[dict]:
        if table_name in UNUSED_TABLES:
            return []
        self._progress(table_name)
        path = Path(self.table_root) / f"{table_name}.json"
        records: Any = read_json(path)  # anything, until they are checked
        if table_name in TABLE_FIELDS:
            check_records(path, table_name, records)
            if table_name == "map":
                self._check_map_masks(path, records)
            stat = path.stat()
            self.table_files[table_name] = {
                "sha256": file_sha256(path),
                "bytes": stat.st_size,
                "mtime_ns": stat.st_mtime_ns,
            }
        return records

    def __make_reverse_index__(self, verbose: bool) -> None:
        self._progress("references")
        check_references(Path(self.table_root), {name: getattr(self, name) for name in TABLE_FIELDS})
        super().__make_reverse_index__(verbose)

    def _check_map_masks(self, path: Path, records: list[dict]) -> None:
        for record in records:
            if not (Path(self.dataroot) / record["filename"]).is_file():
                raise InputError(path, f"{record['token']}.filename", f"{record['filename']} is not under the root")


def read_splits(nusc: NuScenes) -> dict[str, list[str]]:
    """Scene names of every split: the devkit's own (scenes present in this version only) and the version's splits.json.

    A name that splits.json defines wins over the devkit's. ``all`` is every scene, unless splits.json says otherwise.

    Raises:
        InputError: splits.json is no object of lists of known scene names.
    """
    names = [scene["name"] for scene in nusc.scene]
    known = set(names)
    splits = {name: [s for s in scenes if s in known] for name, scenes in create_splits_scenes().items()}
    splits["all"] = names
    path = Path(nusc.table_root) / "splits.json"
    if path.exists():
        custom = read_json(path)
        if not isinstance(custom, dict):
            raise InputError(path, "content", "must be an object: split name -> list of scene names")
        for split, scenes in custom.items():
            if not isinstance(scenes, list) or not all(isinstance(s, str) for s in scenes):
                raise InputError(path, split, "must be a list of scene names")
            unknown = [s for s in scenes if s not in known]
            if unknown:
                raise InputError(path, split, f"{unknown[0]} is no scene of {nusc.version}")
            splits[split] = scenes
    return {name: scenes for name, scenes in splits.items() if scenes}

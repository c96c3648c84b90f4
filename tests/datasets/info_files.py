"""Info files of the tiny root in every style: by mmdet3d's own converters, which its package brings, and of these.

The published BEVFormer's converter is not here. Its file is mmdet3d's of before 1.0 (sizes w, l, h; yaw -yaw - pi/2)
with ``scene_token``, ``prev``, ``next`` and ``can_bus`` besides (its tools/data_converter/nuscenes_converter.py).
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tables import VERSION

import bevstack.models  # noqa: F401 - what mmdet3d imports of mmcv stands in its place first

MINI = "v1.0-mini"


@contextlib.contextmanager
def _converters(folder: Path) -> Iterator[tuple]:
    """mmdet3d's two programs, as if in their folder; they read ``data/nuscenes`` below the working directory."""
    import mmdet3d

    place = Path(mmdet3d.__file__).parent / ".mim" / "tools" / "dataset_converters"
    before, paths = os.getcwd(), list(sys.path)
    os.chdir(folder)
    sys.path.insert(0, str(place))
    sys.path.insert(0, str(place.parent.parent))
    try:
        yield importlib.import_module("nuscenes_converter"), importlib.import_module("update_infos_to_v2")
    finally:
        os.chdir(before)
        sys.path[:] = paths


def converted(root: Path, folder: Path) -> tuple[dict, dict]:
    """What mmdet3d makes of a root of ``tables.build_root``: its first file's content, and that of 1.x.

    Both hold both scenes; their version is renamed to the tiny root's.
    """
    data = Path(shutil.copytree(root, folder / "data" / "nuscenes"))
    (data / VERSION).rename(data / MINI)  # the names of versions that mmdet3d knows
    with _converters(folder) as (first, second):
        first.create_nuscenes_infos("data/nuscenes", "nuscenes", version=MINI)
        (folder / "v2").mkdir()
        second.update_nuscenes_infos("data/nuscenes/nuscenes_infos_val.pkl", "v2")
    infos = pickle.loads((data / "nuscenes_infos_val.pkl").read_bytes())
    data_list = pickle.loads((folder / "v2" / "nuscenes_infos_val.pkl").read_bytes())
    infos["metadata"]["version"] = data_list["metainfo"]["version"] = VERSION
    return infos, data_list


def as_bevformer(infos: dict, root: Path) -> dict:
    """mmdet3d's infos as the published BEVFormer's ``nuscenes_infos_temporal_*.pkl``."""
    samples = {sample["token"]: sample for sample in json.loads((root / VERSION / "sample.json").read_text())}
    infos = copy.deepcopy(infos)
    for info in infos["infos"]:
        sample = samples[info["token"]]
        info |= {"scene_token": sample["scene_token"], "prev": sample["prev"], "next": sample["next"]}
        info["can_bus"] = np.zeros(18)
        boxes = info["gt_boxes"]
        info["gt_boxes"] = np.concatenate(
            [boxes[:, :3], boxes[:, [4, 3]], boxes[:, 5:6], -boxes[:, 6:] - np.pi / 2], axis=1
        )
    return infos


def write_splits(content: dict, folder: Path, stem: str) -> list[Path]:
    """The content's samples of the first scene as ``<stem>_train.pkl``, of the second as ``<stem>_val.pkl``."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = "infos" if "infos" in content else "data_list"
    paths = []
    for name, scene in (("train", "s0"), ("val", "s1")):
        part = {**content, kind: [info for info in content[kind] if info["token"].startswith(scene)]}
        paths.append(folder / f"{stem}_{name}.pkl")
        paths[-1].write_bytes(pickle.dumps(part))
    return paths

"""Predictions as files: JSON a moment, all boxes of a run as one Parquet table."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.engine.prediction import BEVPrediction
from bevstack.engine.rig_file import MomentRecord
from bevstack.errors import InputError
from bevstack.files import atomic_write

FRAMES = ("bev", "ego", "global")
COLUMNS = {
    "moment": "string",
    "stream": "string",
    "seconds": "double",
    "frame": "string",
    "class": "string",
    "score": "float",
    **dict.fromkeys(("x_m", "y_m", "z_m", "length_m", "width_m", "height_m", "yaw", "vx_mps", "vy_mps"), "double"),
    "attribute": "string",
    "track_id": "int64",
}
"""Columns of the table of boxes and their types, by Arrow's names; the last four may be null."""


def chosen_boxes(prediction: BEVPrediction, min_score: float, frame: str, frame_from_bev: np.ndarray) -> BEVPrediction:
    """A prediction with its boxes above a score, in another frame.

    Args:
        prediction: in the BEV frame.
        min_score: least score of a box that is kept.
        frame: one of :data:`FRAMES`. frame_from_bev: (4, 4) metres, which leads there.
    """
    if prediction.boxes is None:
        return prediction
    boxes = prediction.boxes.above(min_score)
    return replace(prediction, boxes=boxes if frame == "bev" else boxes.moved(frame_from_bev, frame))


def result_of(record: MomentRecord, prediction: BEVPrediction, cells: bool = False) -> dict[str, Any]:
    """What is written of a moment: nested plain values, as ``json.dumps`` takes them.

    Keys: ``name``, ``stream``, ``seconds``, ``images`` (by camera), ``boxes_frame`` and those of
    :meth:`bevstack.engine.prediction.BEVPrediction.as_dict`, of which all but the boxes are in the frame "bev".
    """
    frame = {} if prediction.boxes is None else {"boxes_frame": prediction.boxes.frame}
    images = {camera: str(path) for camera, path in (record.images or {}).items()}
    head = {"name": record.name, "stream": record.stream, "seconds": record.seconds, "images": images}
    return {**head, **frame, **prediction.as_dict(cells)}


def box_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The boxes of a result of :func:`result_of` as rows of :data:`COLUMNS`."""
    rows = []
    for box in result.get("boxes", ()):
        velocity = box["velocity_mps"] or (None, None)
        numbers = [*box["center_m"], *box["size_m"], box["yaw"], *velocity]
        head = [result["name"], result["stream"], result["seconds"], result["boxes_frame"], box["class"], box["score"]]
        tail = [box.get("attribute") or None, box.get("track_id")]
        rows.append(dict(zip(COLUMNS, [*head, *numbers, *tail], strict=True)))
    return rows


def write_json(path: Path, content: Any) -> None:
    """Write plain values as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False) + "\n", encoding="utf-8")


def require_parquet(tool: str = "infer", flag: str = "--parquet") -> None:
    """Ask before long work whether Parquet can be written.

    Args:
        tool, flag: who asks, for the message.

    Raises:
        InputError: pyarrow is not installed.
    """
    if find_spec("pyarrow") is None:
        raise InputError(tool, flag, "needs pyarrow: pip install 'bevstack[parquet]'")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of :func:`box_rows` as a Parquet table, typed also where there is no row.

    Raises:
        InputError: the file cannot be written.
    """
    write_row_groups(path, [rows])


def write_row_groups(path: Path, groups: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    """As :func:`write_parquet`, of more rows than fit into memory: one group of them after the other.

    Raises:
        InputError: the file cannot be written.
    """
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, _ARROW.get(kind, kind))()) for name, kind in COLUMNS.items()])
    with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for rows in groups:
            writer.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema))


_ARROW = {"double": "float64", "float": "float32"}  # what pyarrow calls the makers of these types

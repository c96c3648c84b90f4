"""The work behind ``tools/results.py``: what trained weights score, with intervals, and what their memory gives.

Everything is asked of one test set by ``tools/test.py``'s own code: once as the model is, with a report, and once with
each number of frames that a prediction may rest on. What is found is written as one JSON file a model; the page is made
of these files alone (:mod:`bevstack.experiments.results_page`), so that it can be made again without any model.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.engine.checkpoint import checkpoint_of
from bevstack.engine.config import check_components, load_config
from bevstack.engine.source_commit import commit
from bevstack.engine.test import test
from bevstack.errors import InputError
from bevstack.evaluation.breakdown import expected_calibration_error
from bevstack.evaluation.detection_table import DetectionTable, table_path
from bevstack.evaluation.drawn_scores import (
    Drawn,
    class_scores,
    distance_scores,
    drawn_times,
    interval,
    motion_scores,
    raster_scores,
    visibility_scores,
)
from bevstack.evaluation.run_comparison import load_calibration, load_cells
from bevstack.experiments.arguments import results_parser
from bevstack.experiments.compare import processor
from bevstack.experiments.motion_oracle import described
from bevstack.experiments.results_page import read_files, results_page
from bevstack.experiments.variants import put_everywhere
from bevstack.files import atomic_write

WHOLE = "as trained"
_BY_FRAMES = ("mAP", "AP/car", "AVE/movers", "moving/movers", "recall/", "IoU/")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    Raises:
        InputError: bad configuration or checkpoint, or files that are no results.
    """
    args = results_parser().parse_args(arguments)
    if not args.report:
        if args.config is None or args.checkpoint is None:
            raise InputError("tools/results.py", "CONFIG CHECKPOINT", "name both, or --report for the page alone")
        found = results_of(args.config, args.checkpoint, args)
        with atomic_write(args.records / f"{args.name}.json") as temporary:
            temporary.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    text = results_page(read_files(args.records))
    with atomic_write(args.page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{args.page}, of the files in {args.records}")
    return 0


def results_of(config: str | os.PathLike, checkpoint: str | os.PathLike, args: Any) -> dict[str, Any]:
    """All that is asked of one model.

    Args:
        config: as ``tools/test.py`` takes it.
        checkpoint: a file, or a training's folder, whose newest one is taken.
        args: of :func:`bevstack.experiments.arguments.results_parser`.

    Returns:
        ``name``, ``scores`` ([value, low, high] by name), ``metrics`` of the test, ``calibration`` (expected error by
        head), ``frames`` (scores, and ``gain`` over one frame, by number of frames), and where all of it comes from.
    """
    file = checkpoint_of(checkpoint)
    found: dict[str, Any] = {"kind": "model", "name": args.name, "frames": {}}
    alone: Drawn = {}
    for frames in (None, *sorted(args.frames)):
        cfg = load_config(config, args.cfg_options)
        if args.data_root is not None:
            for part in ("test_dataloader", "test_evaluator"):
                put_everywhere(cfg[part], "data_root", str(args.data_root))
        if frames is not None:
            cfg.test_cfg = {**cfg.test_cfg, "type": "StreamingTestLoop", "frames": frames}
        check_components(cfg)
        folder = args.work_dir / args.name / (WHOLE if frames is None else f"frames {frames}").replace(" ", "_")
        metrics = test(cfg, file, folder, report=folder / "report")
        drawn = drawn_scores(folder / "report", args.draws, whole=frames is None)
        if frames is None:
            root = Path(cfg.test_dataloader.dataset.data_root)
            found |= {"metrics": finite(metrics), "scores": intervals(drawn)}
            counts = load_calibration(folder / "report")
            found["calibration"] = finite({name: expected_calibration_error(rows) for name, rows in counts.items()})
            found |= {"scenes": num_scenes(folder / "report"), "data": described(root)}
        else:
            chosen = {name: values for name, values in drawn.items() if name.startswith(_BY_FRAMES)}
            alone = alone or chosen
            gain = {name: values - alone[name] for name, values in chosen.items() if name in alone}
            means: dict[str, float] = {name: metrics[name] for name in ("mAVE", "mAOE", "NDS") if name in metrics}
            found["frames"][str(frames)] = {
                "scores": intervals(chosen), "gain": intervals(gain), "metrics": finite(means),
            }  # fmt: skip
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    found |= {"config": str(config), "checkpoint": str(checkpoint), "sha256": digest, "draws": args.draws}
    return found | {"commit": commit(), "machine": processor()}


def drawn_scores(report: Path, draws: int, whole: bool) -> Drawn:
    """(1 + draws,) each of a report's scores by name.

    Args:
        report: folder of ``tools/test.py --report``.
        draws: of scenes.
        whole: whether by distance, too.
    """
    table = DetectionTable.load(table_path(report)) if table_path(report).is_file() else None
    cells = load_cells(report)
    scenes = sorted({*({} if table is None else set(table.scenes.tolist())), *(key[2] for key in cells)})
    times = drawn_times(len(scenes), draws)
    scores: Drawn = {}
    if table is not None:
        parts = [class_scores, motion_scores, visibility_scores, *([distance_scores] if whole else [])]
        for part in parts:
            scores |= part(table, scenes, times)
    return scores | raster_scores(cells, scenes, times)


def num_scenes(report: Path) -> int:
    """How many scenes a report is of."""
    cells = {key[2] for key in load_cells(report)}
    path = table_path(report)
    return len(cells | (set(DetectionTable.load(path).scenes.tolist()) if path.is_file() else set()))


def intervals(drawn: Drawn) -> dict[str, list[float]]:
    """[value, low, high] of the scores that exist."""
    found = {name: interval(values) for name, values in drawn.items() if np.isfinite(values[0])}
    return {name: [round(number, 5) for number in parts] for name, parts in found.items()}


def finite(values: Mapping[Any, float]) -> dict[str, float]:
    """The numbers that exist, to five places."""
    return {name: round(float(value), 5) for name, value in values.items() if math.isfinite(value)}

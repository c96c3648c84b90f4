#!/usr/bin/env python
"""Scores of several tests in one table: ``tools/compare_metrics.py NAME=JSON ...``; absent files are left out."""

from __future__ import annotations

import json
from pathlib import Path

from bevstack.errors import InputError, ToolParser, run_tool

KEYS = ("NDS", "mAP", "mAP_present", "AP/car", "AP/pedestrian", "iou/drivable_area", "iou/vehicle", "mAOE", "mAVE")
OTHERS = ("train_seconds",)


def main() -> int:
    """Print a row a score and a column a test."""
    parser = ToolParser(prog="tools/compare_metrics.py", description="Scores of several tests in one table.")
    parser.add_argument("tests", nargs="+", metavar="NAME=JSON", help="metrics.json of tools/test.py under a name")
    columns: dict[str, dict[str, float]] = {}
    for text in parser.parse_args().tests:
        name, sign, file = text.partition("=")
        if not sign or not name:
            raise InputError("compare_metrics", text, "expected NAME=JSON, as demo=work_dirs/demo/metrics.json")
        if Path(file).is_file():
            try:
                columns[name] = dict(json.loads(Path(file).read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise InputError(file, "metrics", f"is no table of scores: {error}") from None
    print("scores on the same scenes, which no model has seen:")
    print(f"  {'':<18}" + "".join(f"{name:>16}" for name in columns))
    for key in (*KEYS, *OTHERS):
        values = [scores.get(key) for scores in columns.values()]
        if any(value is not None for value in values):
            shown = ["-" if value is None else f"{value:.0f}" if key in OTHERS else f"{value:.3f}" for value in values]
            print(f"  {key:<18}" + "".join(f"{value:>16}" for value in shown))
    return 0


if __name__ == "__main__":
    run_tool(main)

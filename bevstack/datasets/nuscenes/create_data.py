"""The work behind ``tools/create_data.py``: index and map tiles of a nuScenes version, progress, table and summary.

Imports the devkit: import this module only where data is made.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.datasets.nuscenes.sample_rows import IndexChoices
from bevstack.datasets.nuscenes.table_checks import TABLE_FIELDS
from bevstack.datasets.plausibility import print_findings

_STEPS = len(TABLE_FIELDS) + 13  # the tables, the steps that write_index announces besides, four maps


def create_nuscenes(
    root: str | Path,
    version: str,
    out: str | Path | None = None,
    maps: bool = True,
    choices: IndexChoices | None = None,
) -> dict:
    """Write the index of ``version`` and the map tiles of its locations; print what was made.

    Args:
        root: dataset root.
        version: folder of the tables.
        out: folder for indices, ``<root>/bevstack-index`` by default.
        maps: whether to rasterise the map expansion.
        choices: cameras, lidar, and what to do about missing images; None for all, LIDAR_TOP and refusal.

    Returns:
        The summary of :func:`bevstack.datasets.nuscenes.index_writer.write_index`.

    Raises:
        InputError: see there.
    """
    console = Console()
    columns = (TextColumn("{task.description:<28}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    bar = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
    with bar, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        task = bar.add_task("starting", total=_STEPS)

        def step(text: str) -> None:
            bar.update(task, description=text, advance=1)

        summary = write_index(root, version, out, maps, choices, progress=step)
        bar.update(task, description="done", total=1, completed=1)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print_findings(summary["findings"], console)
    print("look at it: python tools/visualize.py --ground-truth CONFIG --out FOLDER")
    print(summary_line(summary))
    return summary


def summary_line(summary: dict) -> str:
    """One line: scenes, samples, camera sweeps, boxes (by class), maps, size, seconds, place."""
    classes = ", ".join(f"{name} {n}" for name, n in sorted(summary["boxes_per_class"].items(), key=lambda kv: -kv[1]))
    maps = ", ".join(summary["maps"]) or "none"
    bus = "yes" if summary["has_can_bus"] else "none"
    sweeps = f", {summary['sweeps']} camera sweeps" if summary["sweeps"] else ""
    return (
        f"{summary['scenes']} scenes, {summary['samples']} samples{sweeps}, {summary['boxes']} boxes"
        f"{f' ({classes})' if classes else ''}, CAN bus: {bus}, maps: {maps}, "
        f"{summary['bytes'] / 1e6:.1f} MB in {summary['seconds']:.1f} s -> {summary['folder']}"
    )

"""What ``tools/check_data.py`` prints: a table of the faults of each version, then what is in doubt."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bevstack.datasets.nuscenes.data_check import check_data
from bevstack.datasets.nuscenes.tables import require_version
from bevstack.datasets.plausibility import print_findings


def report_data(root: str | Path, version: str | None = None, decode: bool = False) -> int:
    """Check versions of a root and print what was found; returns the exit code, 1 where there is a fault.

    Args:
        root: dataset root.
        version: folder of the tables; None for all that are there.
        decode: see :func:`bevstack.datasets.nuscenes.data_check.check_data`.

    Raises:
        InputError: there is no such root, or no version in it.
    """
    there = sorted(path.parent.name for path in Path(root).glob("*/*.json") if path.stem in ("scene", "sample"))
    versions = [version] if version else list(dict.fromkeys(there))
    if not versions:
        require_version(root, "v1.0-mini")  # says what is missing, and where the tables may be instead
    console, code = Console(), 0
    for name in versions:
        with console.status(name) as status:
            report = check_data(root, name, decode, status.update)
        total = sum(fault.count for fault in report.faults)
        print(f"{Path(root) / name}: {total} faults of {len(report.faults)} kinds")
        if report.faults:
            table = Table(box=None)
            for column in ("count", "file", "first at", "what is wrong"):
                table.add_column(column, overflow="fold")
            for fault in report.faults:
                texts = fault.first.file, fault.first.field, fault.first.reason
                table.add_row(fault.counted, *map(escape, texts))
            console.print(table)
            code = 1
        for remark in report.remarks:
            print(f"note: {remark}", file=sys.stderr)
        if report.plausible:
            print_findings(report.plausible, console)
    return code

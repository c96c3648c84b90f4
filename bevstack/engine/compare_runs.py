"""The work behind ``tools/compare_runs.py``: two reports side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bevstack.engine.arguments import compare_runs_parser
from bevstack.evaluation.run_comparison import Difference, compare_runs


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of two runs.

    Raises:
        InputError: a folder is no report, or they cannot be compared.
    """
    args = compare_runs_parser().parse_args(arguments)
    print_differences(compare_runs(args.first, args.second, args.draws), args.first, args.second)
    return 0


def print_differences(differences: Sequence[Difference], first: str, second: str) -> None:
    """A table; what is more than noise is bold."""
    table = Table(title=f"A {first}, B {second}", title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for column in ("A", "B", "B - A", "95 % interval"):
        table.add_column(column, justify="right")
    table.add_column("")
    for line in differences:
        change, interval = f"{line.second - line.first:+.3f}", f"{line.low:+.3f} to {line.high:+.3f}"
        verdict = ("better" if line.low > 0 else "worse") if line.certain else "may be noise"
        values = (line.name, f"{line.first:.3f}", f"{line.second:.3f}", change, interval, verdict)
        table.add_row(*values, style="bold" if line.certain else None)
    Console().print(table)

#!/usr/bin/env python
"""Curves of trainings: ``tools/plot_run.py WORK_DIR [WORK_DIR ...] --out curves.png [--keys NAME ...]``."""

from bevstack.engine.arguments import plot_run_arguments
from bevstack.errors import run_tool


def main() -> int:
    """Read the command line, then import what draws: --help and mistaken flags answer before torch is there."""
    plot_run_arguments()
    from bevstack.engine import plot_run

    return plot_run.main()


if __name__ == "__main__":
    run_tool(main)

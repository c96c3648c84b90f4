#!/usr/bin/env python
"""Two tests side by side, with intervals of what is noise: ``tools/compare_runs.py A B``, folders of ``--report``."""

from bevstack.engine.arguments import compare_runs_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    compare_runs_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.compare_runs import main

    run_tool(main)

#!/usr/bin/env python
"""Score a checkpoint with faulty sensors: ``tools/robustness.py CONFIG CHECKPOINT [--suite cameras time ...]``."""

from bevstack.errors import run_tool
from bevstack.experiments.arguments import robustness_parser

if __name__ == "__main__":
    robustness_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.experiments.robustness import main

    run_tool(main)

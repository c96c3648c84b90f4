#!/usr/bin/env python
"""Score trained weights for docs/results.md, without training: ``tools/results.py CONFIG CHECKPOINT --name NAME``."""

from bevstack.errors import run_tool
from bevstack.experiments.arguments import results_parser

if __name__ == "__main__":
    results_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.experiments.results import main

    run_tool(main)

#!/usr/bin/env python
"""Train and score a config's variants at equal steps: ``tools/compare.py CONFIG [--page FILE] [--only WORD ...]``."""

from bevstack.errors import run_tool
from bevstack.experiments.arguments import compare_parser

if __name__ == "__main__":
    compare_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.experiments.compare import main

    run_tool(main)

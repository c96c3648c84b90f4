#!/usr/bin/env python
"""Score a checkpoint on a config's test set: ``tools/test.py CONFIG CHECKPOINT [--out DIR] ...``."""

from bevstack.engine.arguments import test_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    test_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.test import main

    run_tool(main)

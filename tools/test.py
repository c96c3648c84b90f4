#!/usr/bin/env python
"""Score a checkpoint on a config's test set: ``tools/test.py CONFIG CHECKPOINT [--out DIR] ...``."""

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.engine.test import main

    run_tool(main)

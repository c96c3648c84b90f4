#!/usr/bin/env python
"""Train and score a config's variants at equal steps: ``tools/compare.py CONFIG [--page FILE] [--only WORD ...]``."""

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.experiments.compare import main

    run_tool(main)

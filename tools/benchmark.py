#!/usr/bin/env python
"""Time one step of a config: ``tools/benchmark.py CONFIG [--train] [--repeats N] [--cfg-options KEY=VALUE ...]``."""

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.engine.benchmark import main

    run_tool(main)

#!/usr/bin/env python
"""Time one step of a config: ``tools/benchmark.py CONFIG [--train] [--repeats N] [--cfg-options KEY=VALUE ...]``."""

from bevstack.engine.arguments import benchmark_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    benchmark_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.benchmark import main

    run_tool(main)

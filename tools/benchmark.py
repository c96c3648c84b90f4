#!/usr/bin/env python
"""Time a suite, or one step of a config: ``tools/benchmark.py --suite NAME [--json FILE] | CONFIG [--train]``."""

from bevstack.errors import run_tool
from bevstack.experiments.arguments import benchmark_parser

if __name__ == "__main__":
    args = benchmark_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    if args.config is None:
        from bevstack.experiments.benchmarks.suites import main
    else:
        from bevstack.engine.benchmark import main

    run_tool(main)

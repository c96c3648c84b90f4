#!/usr/bin/env python
"""Temperatures of a model's scores: ``tools/calibrate.py FILE.safetensors [--train-root DIR] [--samples 400]``."""

from bevstack.engine.arguments import calibrate_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    calibrate_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.calibrate import main

    run_tool(main)

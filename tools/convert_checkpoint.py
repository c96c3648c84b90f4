#!/usr/bin/env python
"""Weights of other projects in this project's layout: ``tools/convert_checkpoint.py bevformer IN OUT``."""

from pathlib import Path

from bevstack.engine.arguments import convert_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    convert_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.convert_checkpoint import main

    run_tool(lambda: main(Path(__file__).resolve().parents[1] / "configs" / "bevformer"))

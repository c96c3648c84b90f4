#!/usr/bin/env python
"""Weights of other projects in this project's layout: ``tools/convert_checkpoint.py bevformer IN OUT``."""

from pathlib import Path

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.engine.convert_checkpoint import main

    run_tool(lambda: main(Path(__file__).resolve().parents[1] / "configs" / "bevformer"))

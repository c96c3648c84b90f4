#!/usr/bin/env python
"""Weights to be shipped: ``tools/pack_weights.py CHECKPOINT [CONFIG] --out NAME.safetensors [--half] ...``."""

from bevstack.engine.arguments import pack_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    pack_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.pack_weights import main

    run_tool(main)

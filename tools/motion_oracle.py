#!/usr/bin/env python
"""What image motion tells of moving and standing vehicles, without a model: ``tools/motion_oracle.py --root DIR``."""

from bevstack.errors import run_tool
from bevstack.experiments.arguments import motion_oracle_parser

if __name__ == "__main__":
    motion_oracle_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.experiments.motion_oracle import main

    run_tool(main)

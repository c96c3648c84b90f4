#!/usr/bin/env python
"""Teach a video backbone's fast path to see motion: ``tools/pretrain_motion.py CONFIG --out FILE.pth [--steps N]``."""

from bevstack.errors import run_tool
from bevstack.experiments.arguments import pretrain_motion_parser

if __name__ == "__main__":
    pretrain_motion_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.experiments.pretrain_motion import main

    run_tool(main)

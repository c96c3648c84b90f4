#!/usr/bin/env python
"""Teach a video backbone's fast path to see motion: ``tools/pretrain_motion.py CONFIG --out FILE.pth [--steps N]``."""

from bevstack.errors import run_tool

if __name__ == "__main__":
    from bevstack.experiments.pretrain_motion import main

    run_tool(main)

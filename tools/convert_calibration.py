#!/usr/bin/env python
"""rig.json and poses.json of other formats: ``tools/convert_calibration.py nuscenes|t4|kitti SOURCE --out DIR``."""

from bevstack.engine.arguments import convert_calibration_parser
from bevstack.errors import run_tool

if __name__ == "__main__":
    convert_calibration_parser().parse_args()  # --help and a mistyped flag answer before torch is imported
    from bevstack.engine.convert_calibration import main

    run_tool(main)

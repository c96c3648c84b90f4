#!/usr/bin/env python
"""A trained model as a file that runs without this package.

python tools/export.py MODEL --out FILE.onnx|FILE.pt2 [--interface mlperf] [--image-size 900x1600]
"""

from bevstack.engine.arguments import export_arguments
from bevstack.errors import run_tool


def main() -> int:
    """Read the command line, then import what exports: --help and mistaken flags answer before torch is there."""
    export_arguments()
    from bevstack.engine import export

    return export.main()


if __name__ == "__main__":
    run_tool(main)

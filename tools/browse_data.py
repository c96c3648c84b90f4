#!/usr/bin/env python
"""What training sees, before it: ``tools/browse_data.py CONFIG --out DIR [--split train] [--max-samples N]``."""

from bevstack.engine.arguments import browse_data_arguments
from bevstack.errors import run_tool


def main() -> int:
    """Read the command line, then import what draws: --help and mistaken flags answer before torch is there."""
    browse_data_arguments()
    from bevstack.engine import browse_data

    return browse_data.main()


if __name__ == "__main__":
    run_tool(main)

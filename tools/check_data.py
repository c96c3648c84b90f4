"""Report everything that is wrong with a dataset at once: ``python tools/check_data.py data/nuscenes --decode``.

Exit code 0: nothing is wrong; 1: there are faults; 2: there is no such dataset. Doubts about what is plausible are
printed as by ``tools/create_data.py`` and are no faults.
"""

from __future__ import annotations

from bevstack.errors import ToolParser, run_tool


def main() -> int:
    """Parse the command line, look at the versions and print a table of faults for each."""
    parser = ToolParser(prog="tools/check_data.py", description=__doc__.split("\n")[0])
    parser.add_argument("root", help="folder with samples/ and the tables' folder")
    parser.add_argument("--version", help="folder of the tables (default: every one that is there)")
    parser.add_argument("--decode", action="store_true", help="decode every image instead of looking at its header")
    args = parser.parse_args()

    from bevstack.datasets.nuscenes.data_report import report_data

    return report_data(args.root, args.version, args.decode)


if __name__ == "__main__":
    run_tool(main)

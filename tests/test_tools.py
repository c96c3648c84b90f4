"""Every command of tools/ answers ``--help`` without importing what computes, and a mistaken command line in one line.

What is imported is looked at and not the time, which says more of the machine. Expected: exit codes as everywhere, 0
and 2, and the line's form as in bevstack/errors.py.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOLS = sorted((ROOT / "tools").glob("*.py"))
SLOW = {"torch", "numpy", "mmengine", "mmcv", "mmdet", "mmdet3d", "cv2", "scipy", "numba", "nuscenes", "matplotlib"}
SLOW |= {"PIL", "onnx", "onnxruntime", "timm", "pandas", "pyarrow", "tensorboard"}
PROGRAM = """
import json, runpy, sys
sys.argv = sys.argv[1:]
code = None
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as left:
    code = left.code
print("\\n" + json.dumps([code, sorted({name.split(".")[0] for name in sys.modules})]))
"""
REASONED = re.compile(r"error: tools/\w+\.py[\w -]*: [^:\n]+: [^\n]+\n")


def called(tool: Path, *arguments: str) -> tuple[int, set[str], str, str]:
    """Exit code, imported packages, standard output and error of a tool in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(tool), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    printed, _, last = done.stdout.rstrip().rpartition("\n")
    code, modules = json.loads(last)
    return code, set(modules), printed, done.stderr


def test_tools_are_found() -> None:
    assert len(TOOLS) >= 17 and ROOT / "tools" / "train.py" in TOOLS


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_help_imports_nothing_slow(tool) -> None:
    code, modules, printed, _ = called(tool, "--help")
    assert code == 0 and "usage:" in printed
    assert "argparse" in modules and sorted(modules & SLOW) == []


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
def test_a_mistaken_command_line_is_one_line(tool) -> None:
    for arguments in (("--no-such-flag",), ("x", "y", "z", "--no-such-flag", "1")):
        code, modules, printed, said = called(tool, *arguments)
        assert code == 2 and printed.strip() == "", (arguments, code, printed)
        assert REASONED.fullmatch(said), said
        assert sorted(modules & SLOW) == []


@pytest.mark.parametrize(
    ("tool", "arguments", "line"),
    [
        ("train.py", ["a.py", "--resum"], None),  # argparse knows a flag by its beginning
        ("train.py", [], "tools/train.py: arguments: the following arguments are required: config; --help shows all"),
        ("train.py", ["a.py", "--dryrun"], "tools/train.py: arguments: unrecognized arguments: --dryrun; "
         "did you mean '--dry-run'?"),
        ("train.py", ["a.py", "--launcher", "x"], "tools/train.py: --launcher: invalid choice: 'x' (choose from "),
        ("plot_run.py", ["a", "--smooth", "much"], "tools/plot_run.py: --smooth: invalid int value: 'much'; "),
        ("convert_checkpoint.py", ["weights", "a"], "tools/convert_checkpoint.py weights: arguments: the following "
         "arguments are required: OUT; "),
    ],
)  # fmt: skip
def test_the_line_says_what_is_wrong(tool, arguments, line) -> None:
    if line is None:
        assert "unrecognized" not in called(ROOT / "tools" / tool, *arguments)[3]
        return
    code, _, _, said = called(ROOT / "tools" / tool, *arguments)
    assert code == 2 and said.startswith(f"error: {line}") and said.count("\n") == 1, said

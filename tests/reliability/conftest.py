"""Lets test files of this folder import ``tables`` and the cases of ``tests/datasets``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))

"""Which commit of the source is running."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit(digits: int = 7) -> str:
    """The source's commit, "+" where files differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent
    try:
        found = [
            subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=30).stdout  # noqa: S603
            for command in (["git", "rev-parse", f"--short={digits}", "HEAD"], ["git", "status", "--porcelain", "-uno"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found[0].strip() + ("+" if found[1].strip() else "")

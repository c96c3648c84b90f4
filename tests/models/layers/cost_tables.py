"""The measured numbers of docs/attention_and_convolution.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "attention_and_convolution.md"


def cost_in_the_docs(name: str) -> tuple[int, float]:
    """Weights and millions of multiply-adds in the one row of plain numbers that begins with this name."""
    rows = re.findall(rf"^\| {name} \| ([\d,]+) \| ([\d,.]+) \|$", PAGE.read_text(), re.MULTILINE)
    assert len(rows) == 1, name
    weights, multiply_adds = (number.replace(",", "") for number in rows[0])
    return int(weights), float(multiply_adds)

"""What of the log a console shows."""

from __future__ import annotations

import logging


class WithoutNoise(logging.Filter):
    """Keeps from the console what mmengine says about its own deprecated parts, and lines that no screen holds."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is shown."""
        text = record.getMessage()
        if text.endswith(" is skipped since its requires_grad=False"):  # once for every tensor that is frozen
            return False
        return len(text) < 1000 and not text.startswith(('"FileClient" will', '"HardDiskBackend" is', "Exp name: "))

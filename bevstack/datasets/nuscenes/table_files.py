"""Reading and hashing the JSON files of a dataset, strictly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from bevstack.errors import InputError


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number JSON knows")


def read_json(path: Path) -> object:
    """Parse a JSON file strictly (NaN and Infinity are refused).

    Raises:
        InputError: the file is missing, empty, not UTF-8, truncated or no JSON.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(path, "file", "not found") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(path, "file", f"cannot be read: {error}") from None
    if not text.strip():
        raise InputError(path, "file", "is empty")
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise InputError(path, f"line {error.lineno}", f"is not valid JSON (truncated?): {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(path, "content", str(error)) from None

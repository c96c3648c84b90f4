"""Numbers of a constructor that belong together, as one value that a config writes as a dict."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar

Value = TypeVar("Value", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Base of frozen dataclasses whose fields all have defaults: the size of a decoder, the weights of a loss, ..."""

    @classmethod
    def build(cls: type[Value], value: Value | Mapping | None, name: str) -> Value:
        """Take a built value, the fields of one (as configs state them), or None for all defaults.

        Args:
            value: what a constructor was given.
            name: of the argument, for the error.

        Raises:
            ValueError: an unknown field, with the nearest known one; or neither a value nor a dict.
        """
        if value is None or isinstance(value, cls):
            return cls() if value is None else value
        if not isinstance(value, Mapping):
            raise ValueError(f"{name}: {value!r} must be a dict of {cls.__name__}'s values")
        known = [field.name for field in fields(cls)]
        for key in (key for key in value if key not in known):
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)[0]
            raise ValueError(f"{name}: unknown key {key!r}; did you mean {near!r}?")
        return cls(**value)

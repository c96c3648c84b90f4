"""Names of splits in configs: a split of the tables, or its first scenes, as ``val[:6]``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_FIRST = re.compile(r"(?P<name>.+)\[:(?P<number>[1-9]\d*)\]")


def scenes_of(splits: Mapping[str, Sequence[str]], split: str) -> list[str] | None:
    """Tokens of a split's scenes, in the split's own order; None where there is no such split.

    ``val[:6]`` are the first six scenes of ``val``, all of them where there are fewer: a score over them is not the
    split's, but compares with another over the same.

    Args:
        splits: split -> tokens of its scenes.
        split: a name among them, or ``NAME[:N]``.
    """
    if split in splits:
        return list(splits[split])
    found = _FIRST.fullmatch(split)
    if found is None or found["name"] not in splits:
        return None
    return list(splits[found["name"]][: int(found["number"])])

"""Names of classes and layers: those that the dataset brings, and those that a config asks for in vain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bevstack.datasets.base import Taxonomy
from bevstack.errors import InputError


def taxonomy_of(results: Mapping) -> Taxonomy:
    """The names of the dataset that made a pipeline's dict; none where a dict was made without one."""
    return results["dataset"].taxonomy if "dataset" in results else Taxonomy()


def require_images(
    transform: object, before: Sequence[object], reason: str = "must come after LoadMultiViewImages"
) -> None:
    """Refuse a transform of images before which none of this package's reads them, nor one from elsewhere may have."""
    known = all(type(step).__module__.startswith("bevstack.") for step in before)
    if known and not any(getattr(step, "loads_images", False) for step in before):
        raise InputError("pipeline", type(transform).__name__, reason)


def refuse_absent(field: str, wanted: Sequence[str], there: Sequence[str], whose: str) -> None:
    """Refuse names that are not there.

    Args:
        field: of the transform, for the message.
        wanted: names that the config asks for.
        there: names that there are.
        whose: "the dataset has the classes", or the like.

    Raises:
        InputError: names the first one that is not there.
    """
    absent = [name for name in wanted if name not in there]
    if absent:
        raise InputError("pipeline", field, f"'{absent[0]}' is not there: {whose} {list(there)}")

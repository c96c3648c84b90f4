"""What a name in a config stands for: looked up in every registry, by import or without it."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import mmengine.registry as theirs
from mmengine.registry import Registry

import bevstack.registry as ours


def suggestion(name: str, known: Iterable[str]) -> str:
    """"; did you mean ...?" with the known name that is nearest; "" where none is near."""
    near = difflib.get_close_matches(name, sorted(set(map(str, known))), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def suggested_name(name: str) -> str:
    """:func:`suggestion` for a name of a config, from what is registered."""
    scope, _, bare = name.rpartition(".")
    return suggestion(bare or name, _known_names(scope))


def find_component(name: Any) -> Any:
    """The class or function that a config's ``type`` names, from any registry or, as a dotted place, from its module.

    For configs that are trusted: the module is imported. None where there is no such thing.
    """
    if not isinstance(name, str):
        return name
    for registry in _registries():
        found = registry.get(name)
        if found is not None:
            return found
    return None


def registered(name: str) -> Any:
    """What a name stands for among what is registered; None where there is no such thing.

    Unlike :func:`find_component` this never imports what the name says: a dotted name that begins with no scope must be
    the place, in a module that is imported already, of something registered.
    """
    scope, _, bare = name.rpartition(".")
    if scope and scope not in known_scopes():
        found = getattr(sys.modules.get(scope), bare, None)
        entries = (entry for root in _roots() for node in _below(root) for entry in node.module_dict.values())
        return found if found is not None and any(found is entry for entry in entries) else None
    if scope:
        nodes = (node for root in _roots() for node in _below(root) if node.scope == scope)
    else:
        nodes = (node for registry in _registries() for node in _upwards(registry))
    for node in nodes:
        node.import_from_location()  # where its own package says that its parts lie
        if bare in node.module_dict:
            return node.module_dict[bare]
    return None


def known_scopes() -> set[str]:
    """Scopes that names may begin with: ours, OpenMMLab's, and those of packages that are imported already."""
    return {node.scope for root in _roots() for node in _below(root)}


def _registries() -> list:
    """Our registries first, then mmengine's for what we add nothing to (optimizers, functions, ...)."""
    return [value for module in (ours, theirs) for value in vars(module).values() if isinstance(value, Registry)]


def _upwards(registry: Any) -> Iterator[Any]:
    """A registry and those it falls back to."""
    while registry is not None:
        yield registry
        registry = registry.parent


def _below(registry: Any) -> Iterator[Any]:
    """A registry and those below it."""
    yield registry
    for child in registry.children.values():
        yield from _below(child)


def _roots() -> list:
    """The uppermost registries, each once, with mmdet's below them."""
    importlib.import_module("mmdet.registry")
    return list({id(root): root for registry in _registries() for root in list(_upwards(registry))[-1:]}.values())


def _known_names(scope: str) -> set[str]:
    """Names in one scope, or, without a scope, in ours and those it falls back to."""
    names: set[str] = set()
    for registry in _registries():
        *lower, root = _upwards(registry)
        for node in lower if not scope else ():
            names.update(node.module_dict)
        for node in _below(root):
            names.update(node.module_dict if node.scope == scope or not scope and node is root else ())
    return names

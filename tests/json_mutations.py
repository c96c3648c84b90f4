"""A JSON value changed at random, for tests that files are read or refused whatever they hold."""

from __future__ import annotations

from hypothesis import strategies as st


def places(node: object, way: tuple = ()) -> list[tuple]:
    """Paths to everything inside a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, value in items for place in ((*way, key), *places(value, (*way, key)))]


def change(data: st.DataObject, content: object, values: st.SearchStrategy) -> None:
    """Put another value in one place of the content, or take what is there away."""
    *way, last = data.draw(st.sampled_from(places(content)))
    node: object = content
    for key in way:
        node = node[key]
    if data.draw(st.booleans()):
        node[last] = data.draw(values)
    else:
        del node[last]

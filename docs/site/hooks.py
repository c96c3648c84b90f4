"""What mkdocs does to the pages of docs/ before it builds them (docs/site/mkdocs.yml names this file)."""

from __future__ import annotations

import logging
import re
from collections.abc import Container
from pathlib import Path, PurePosixPath
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LOG = logging.getLogger("mkdocs.hooks.bevstack")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?!\w+:)[^)#\s]+)(?:#[^)\s]*)?\)")


def without_links_out(markdown: str, page: str, coming: Container[str] = ()) -> tuple[str, list[str]]:
    """A page's text whose links to files beside docs/ are their text alone, and the targets that do not exist.

    Args:
        markdown: the page.
        page: its path below docs/.
        coming: pages of which links are text while they are not there.
    """
    missing, docs = [], ROOT / "docs"

    def text_alone(match: re.Match[str]) -> str:
        target = (docs / PurePosixPath(page).parent / match[2]).resolve()
        inside = target.is_relative_to(docs)
        if not target.exists() and inside and str(target.relative_to(docs)) in coming:
            return match[1]
        if not target.exists() and not inside:
            missing.append(match[2])
        return match[0] if inside else match[1]

    return _LINK.sub(text_alone, markdown), missing


def without_absent(entries: list[Any], absent: set[str]) -> list[Any]:
    """A nav without the entries that lead to a page of ``absent``, and without sections that nothing is left of."""
    kept = []
    for entry in entries:
        if isinstance(entry, dict):
            title, target = next(iter(entry.items()))
            target = without_absent(target, absent) if isinstance(target, list) else target
            entry = {title: target}
        else:
            target = entry
        if target and not (isinstance(target, str) and target in absent):
            kept.append(entry)
    return kept


def on_config(config: Any) -> Any:
    """mkdocs' hook: pages of ``extra.coming`` that are not there yet are left out of the nav."""
    absent = {page for page in config.extra["coming"] if not (ROOT / "docs" / page).exists()}
    config.nav = without_absent(config.nav, absent)
    return config


def on_page_markdown(markdown: str, page: Any, config: Any, **kwargs: Any) -> str:
    """mkdocs' hook: links into the repository become text; a warning (an error, strictly) where a file is not there."""
    text, missing = without_links_out(markdown, page.file.src_uri, config.extra["coming"])
    for target in missing:
        LOG.warning("Doc file '%s' contains a link '%s', which is not in the repository", page.file.src_uri, target)
    return text

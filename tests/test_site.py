"""The site of docs/: every page is in it, no link leads nowhere, and nothing is loaded from a network.

Expected: the folder docs/, the sources and the registries themselves.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import bevstack.registry
from tests.test_architecture import FILES, ROOT, module_of

DOCS = ROOT / "docs"
SITE = DOCS / "site" / "mkdocs.yml"
BUILDS = "python docs/site/config_fields.py"


def script(name: str) -> ModuleType:
    """A file of docs/site as a module."""
    spec = importlib.util.spec_from_file_location(f"site_{name}", DOCS / "site" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


config_fields, hooks = script("config_fields"), script("hooks")
SETTINGS = yaml.safe_load(SITE.read_text())


def pages(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        target = next(iter(entry.values())) if isinstance(entry, dict) else entry
        yield from pages(target) if isinstance(target, list) else [target]


# --- pages ----------------------------------------------------------------------------------------------------------


def test_every_page_is_in_the_nav_once() -> None:
    named, there = list(pages(SETTINGS["nav"])), {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert sorted(there - set(named)) == [], "put these pages into nav of docs/site/mkdocs.yml"
    assert sorted(set(named) - there - set(SETTINGS["extra"]["coming"])) == [], "the nav names pages that are not there"
    assert len(named) == len(set(named)) and len(named) > 25


def test_pages_that_are_still_to_come_are_left_out() -> None:
    nav = ["a.md", {"B": "b.md"}, {"Part": [{"C": "c.md"}, "d.md"]}, {"Empty": [{"E": "e.md"}]}]
    assert hooks.without_absent(nav, {"b.md", "c.md", "e.md"}) == ["a.md", {"Part": ["d.md"]}]


def test_links_out_of_the_folder_become_text() -> None:
    text = "[a](../bevstack/errors.py) [b](gpu.md) [c](../bevstack/absent.py) ![d](pictures/demo.jpg) [e](https://a/../c)"
    told, missing = hooks.without_links_out(text + " [f](soon.md#x) [g](never.md)", "export.md", {"soon.md"})
    assert told == "a [b](gpu.md) c ![d](pictures/demo.jpg) [e](https://a/../c) f [g](never.md)"
    assert missing == ["../bevstack/absent.py"]


def anchors(text: str) -> set[str]:
    """Names of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", t).lower()).strip().replace(" ", "-")
        for t in titles
    }


@pytest.mark.parametrize("name", ["README.md", "data/README.md", "docs/README_zh-CN.md"])
def test_links_of_the_readmes_lead_somewhere(name) -> None:
    page = ROOT / name
    if not page.exists() and page.name in SETTINGS["extra"]["coming"]:
        pytest.skip(f"{name} is not there yet")
    wrong = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file in {DOCS / coming for coming in SETTINGS["extra"]["coming"]} and not file.exists():
            continue
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            wrong.append(target)
    assert wrong == []


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site."""
    pytest.importorskip("material", reason="the extra 'docs' is not installed (make test installs it)")
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(SITE),
        "--site-dir",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stderr.splitlines() if line.startswith(("WARNING", "ERROR", "Aborted"))]
    assert done.returncode == 0, "\n".join(said or done.stderr.splitlines()[-20:])
    return folder


def test_the_site_is_built_without_a_broken_link(site) -> None:
    there = {page for page in pages(SETTINGS["nav"]) if (DOCS / page).exists()}
    built = {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")}
    assert built >= {Path(page).with_suffix("") for page in there}
    assert not list(site.rglob("mkdocs.yml")) and not list(site.rglob("hooks.py"))


def test_the_site_loads_nothing_from_a_network(site) -> None:
    """Links of text may lead out; what a browser fetches by itself may not."""
    fetched = r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//"
    styles = r"(?:@import|url\()\s*[\"']?(?:https?:)?//"
    assert re.search(fetched, '<link rel="stylesheet" href="https://fonts.googleapis.com/css">'), "it would be found"
    found = [path for path in site.rglob("*.html") if re.search(fetched, path.read_text())]
    found += [path for path in site.rglob("*.css") if re.search(styles, path.read_text())]
    assert [str(path.relative_to(site)) for path in found] == []


# --- every config field ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer():
    return config_fields.Writer(config_fields.sources())


def test_the_page_of_fields_is_what_the_docstrings_say(writer) -> None:
    assert config_fields.PAGE.read_text() == writer.page(), f"docs/config_fields.md is out of date; run: {BUILDS}"


def test_every_field_is_explained(writer) -> None:
    assert writer.undocumented() == [], "say under Args: of the class's docstring what these are"


def test_every_registered_class_is_on_the_page(writer) -> None:
    """Everything is imported; what is then in the registries is what the source text was read to register."""
    for path in FILES:
        if "register_module" in path.read_text():
            importlib.import_module(module_of(path))
    registered = set()
    for registry in vars(bevstack.registry).values():
        if isinstance(registry, bevstack.registry.Registry) and registry.scope == "bevstack":
            classes = registry.module_dict.values()
            registered |= {cls.__name__ for cls in classes if cls.__module__.startswith("bevstack.")}
    by_call = {"ModulatedDeformConv2dPack"}  # bevstack/interop/deform_conv.py stands in for mmcv's, under its name
    assert len(registered) > 90
    assert registered - by_call == {one.name for one in writer.registered}


def test_fields_are_read_as_python_reads_them(writer) -> None:
    """Names, order and which must be given equal those of every class itself, where that says them."""
    compared = 0
    for one in (*writer.registered, *writer.groups):
        expected = inspect.signature(getattr(importlib.import_module(one.module), one.name)).parameters
        kinds = {parameter.kind for parameter in expected.values()}
        external = [base for base in one.bases if config_fields.class_of(base, one, writer.known) is None]
        if kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}:
            continue  # passes others on, which the page takes from the bases
        read = config_fields.fields_of(one, writer.known)
        if not read and external:
            continue  # has those of a class of mmengine's or torch's
        assert list(read) == list(expected), one.name
        wanted = {name for name, parameter in expected.items() if parameter.default is inspect.Parameter.empty}
        assert {name for name, default in read.items() if default is None} == wanted, one.name
        compared += 1
    assert compared > 90


def test_keys_without_a_class_are_listed() -> None:
    """Every top-level key that the package reads by name stands on the page."""
    nested = {"dist_cfg", "in_channels", "history_channels"}  # of env_cfg, and of parts of the model
    found = {key for path in FILES for key in re.findall(r"\b(?:cfg|config)\.(?:get|pop)\(\"(\w+)\"", path.read_text())}
    assert len(found) > 20
    assert sorted(found - nested - set(config_fields.TOP_LEVEL)) == [], "add these to TOP_LEVEL of config_fields.py"

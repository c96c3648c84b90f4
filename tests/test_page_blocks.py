"""Every command and code block of README and docs/ is tried: run, parsed by the tool that it calls, or marked.

Expected: what the tools, the registries and the configs themselves say. Blocks that are whole files are run by the
tests of their pages (tests/integration).
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.util
import json
import re
import runpy
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import init_default_scope

from bevstack.engine.config import check_components, load_config
from tests.integration.pages import forget
from tests.page_blocks import BLOCKS, PAGES, ROOT, Block, blocks_of, inline_commands
from tests.test_install import PROJECT, tomllib

TOOLS = {path.name: path for path in (ROOT / "tools").glob("*.py")}
MAKEFILE = (ROOT / "Makefile").read_text()
OTHERS = {".", "export", "tensorboard", "my_recorder", "docker", "ros2", "rerun"}  # of the shell, or of others
NOT_RUN = 2  # blocks that nobody can run; each says why above it
TEXT = {"", "text"}  # languages of blocks that are pictures of letters, trees of files, or what a tool prints


def ids(block: Block) -> str:
    return block.place


def is_marked(block: Block, kind: str) -> bool:
    return block.marker[0] == kind


def kinds(block: Block) -> str:
    return "shell" if block.is_shell else block.language


# --- what is where --------------------------------------------------------------------------------------------------


def test_blocks_are_found() -> None:
    counted = Counter(map(kinds, BLOCKS))
    assert counted["shell"] > 50 and counted["python"] > 30 and counted["json"] > 1
    assert set(counted) <= {"shell", "python", "json", "toml"} | TEXT, "a language that nothing here tries"


def test_what_cannot_run_says_why() -> None:
    reasons = [block.marker[1] for block in BLOCKS if is_marked(block, "not run")]
    assert len(reasons) == NOT_RUN, f"NOT_RUN of this file says how many blocks are marked as not run: {reasons}"
    assert all(len(reason.split()) > 3 for reason in reasons)


@pytest.mark.parametrize("block", [block for block in BLOCKS if is_marked(block, "run by")], ids=ids)
def test_the_test_that_runs_a_block_exists(block) -> None:
    file, _, function = block.marker[1].partition("::")
    names = {node.name for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)}
    assert function in names, block.place


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.file and block.language], ids=ids)
def test_whole_files_are_taken_out_by_a_test(block) -> None:
    """A block that is a file, as the text above it says, belongs to a page that tests/integration takes apart."""
    tests = [path.read_text() for path in (ROOT / "tests" / "integration").glob("test_*.py")]
    assert any(f'Page("{block.page.name}"' in text for text in tests), block.place


# --- data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in ("json", "toml")], ids=ids)
def test_data_is_read(block) -> None:
    assert (json.loads if block.language == "json" else tomllib.loads)(block.text)


# --- Python ---------------------------------------------------------------------------------------------------------

PYTHON = [block for block in BLOCKS if block.language == "python"]


def own_modules(page: Path) -> set[str]:
    """Modules that a page's own files are."""
    return {Path(block.file).stem for block in blocks_of(page) if block.file.endswith(".py")}


@pytest.mark.parametrize("block", PYTHON, ids=ids)
def test_python_is_python_and_its_imports_are_there(block) -> None:
    own = own_modules(block.page)
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] in own or importlib.util.find_spec(alias.name), alias.name
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert (ROOT / "configs" / f"{node.module.replace('.', '/')}.py").exists(), node.module
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] not in own:
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}"), (
                    alias.name
                )


@cache
def settings(config: str) -> dict:
    """All names of a config."""
    return load_config(ROOT / config)._cfg_dict.to_dict()


def starts(block: Block) -> bool:
    """Whether a block is nothing but the beginning of a config."""
    return all(isinstance(node, ast.ImportFrom | ast.With) for node in ast.parse(block.text).body)


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}), ids=lambda page: page.name)
def test_python_runs(page, monkeypatch) -> None:
    """Lines of a config run one after the other on the config that they are for, which then is as right as before."""
    monkeypatch.chdir(ROOT)
    init_default_scope("bevstack")
    names: dict = {"__name__": "page_of_docs"}
    given = ""
    try:
        for block in blocks_of(page):
            if block.language != "python" or block.file or block.marker[0] in ("not run", "run by") or starts(block):
                continue
            config = block.marker[1] if is_marked(block, "on") else "configs/demo.py"
            if config != given or is_marked(block, "on"):
                given = config
                names.update(copy.deepcopy(settings(config)))
            exec(compile(block.text, block.place, "exec"), names)  # the text of this repository's own page
            alone = [ast.unparse(node) for node in ast.parse(block.text).body if isinstance(node, ast.Expr)]
            for entry in (text for text in alone if text.startswith("dict(")):  # of a pipeline
                check_components(Config({"entry": eval(entry, names)}))
            check_components(Config({key: value for key, value in names.items() if key in settings(config)}))
    finally:
        forget("page_of_docs")


# --- commands -------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """A tool has read its command line."""


def parsed(tool: str, arguments: list[str]) -> argparse.Namespace:
    """What a tool's own parser makes of its arguments; nothing of the tool runs after that."""
    read = argparse.ArgumentParser.parse_args

    def stop(parser, args=None, namespace=None):
        raise Parsed(read(parser, arguments, namespace))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [tool, *arguments])
        with pytest.raises(Parsed) as stopped:
            runpy.run_path(str(TOOLS[Path(tool).name]), run_name="__main__")
    return stopped.value.args[0]


def is_tool(word: str) -> bool:
    return word.startswith("tools/") and word.endswith(".py")


def try_command(words: list[str], own: set[str]) -> None:
    """A command of a page: its tool takes its arguments; its target, module, extra or file exists."""
    first = words[0]
    if first in ("python", "torchrun", "srun") and any(map(is_tool, words)):
        place = next(i for i, word in enumerate(words) if is_tool(word))
        args = parsed(words[place], words[place + 1 :])
        config = getattr(args, "config", None)
        if config and (ROOT / config).is_file() and getattr(args, "cfg_options", None):
            options = [one for option in args.cfg_options for one in spread(option)]
            check_components(load_config(ROOT / config, options))
        elif config and str(config).startswith("configs/"):
            assert (ROOT / config).is_file() or Path(config).name in own, f"no such config: {config}"
    elif first == "python" and words[1] == "-m":
        assert importlib.util.find_spec(words[2]), words
    elif first == "python":
        assert (ROOT / words[1]).exists() or Path(words[1]).name in own, words
    elif first == "make":
        for word in words[1:]:
            name, is_variable, _ = word.partition("=")
            pattern = rf"^{name} [?:]?=|\$\({name}\)" if is_variable else rf"^{name}:"
            assert re.search(pattern, MAKEFILE + "PYTHON ?=", re.MULTILINE), f"make knows no {word}"
    elif first == "pip":
        for extras in re.findall(r"(?:bevstack|\.)\[([\w,-]+)\]", " ".join(words)):
            assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"]), words
    else:
        assert first in OTHERS, f"{words}: a command that nothing here tries; say so above its block"


def spread(option: str) -> list[str]:
    """``{a,b}.c=d`` as the shell hands it on."""
    match = re.fullmatch(r"(.*?)\{([^{}=]*,[^{}=]*)\}(.*)", option)
    return [option] if match is None else [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")]


def file_names(page: Path) -> set[str]:
    """Names of the files that a page makes."""
    text = page.read_text()
    return {Path(block.file).name for block in blocks_of(page) if block.file} | set(re.findall(r"\b\w+\.py\b", text))


SHELL = [block for block in BLOCKS if block.is_shell and not is_marked(block, "not run")]


@pytest.mark.parametrize("block", SHELL, ids=ids)
def test_commands_are_taken(block) -> None:
    commands = block.commands()
    assert commands, block.place
    for words in commands:
        words = [part for word in words for part in spread(word)]
        words = [word.strip("[]") for word in words if word not in ("...", "[...]")]
        try_command(words, file_names(block.page))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_prose_name_what_there_is(page) -> None:
    """A tool of that name, each of its options; a target of the Makefile; a module."""
    for line, text in inline_commands(page):
        words = [word for word in re.split(r"[\s\[\]|]+", text.removeprefix("python ")) if word]
        if is_tool(words[0]):
            known = options_of(words[0])
            unknown = [word for word in words if word.startswith("--") and word.partition("=")[0] not in known]
            assert unknown == [], f"{page.name}:{line}: {words[0]} has no {unknown}"
        else:
            try_command(["python", *words] if words[0] == "-m" else words, set())


@cache
def options_of(tool: str) -> frozenset[str]:
    """Every option of a tool and of its subcommands."""
    with pytest.MonkeyPatch.context() as patch:
        found: list[argparse.ArgumentParser] = []

        def stop(parser, args=None, namespace=None):
            found.append(parser)
            raise Parsed

        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [tool])
        with pytest.raises(Parsed):
            runpy.run_path(str(TOOLS[Path(tool).name]), run_name="__main__")
    options: set[str] = set()
    while found:
        for action in found.pop()._actions:
            options.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices.values()
    return frozenset(options)


def test_a_stale_option_would_be_found(capsys) -> None:
    with pytest.raises(SystemExit) as left:
        try_command(["python", "tools/train.py", "configs/demo.py", "--epochs", "3"], set())
    assert left.value.code == 2 and "--epochs" in capsys.readouterr().err
    with pytest.raises(AssertionError, match="no such config"):
        try_command(["python", "tools/train.py", "configs/absent.py"], set())
    with pytest.raises(AssertionError, match="make knows no"):
        try_command(["make", "tea"], set())
    assert "--report" in options_of("tools/test.py") and "--epochs" not in options_of("tools/test.py")


def test_files_that_pages_name_exist() -> None:
    """Paths of the repository between backticks, but for what a page makes itself or tells to be made."""
    wrong = []
    for page in PAGES:
        own = file_names(page) if "custom_" in page.name else set()
        for path in re.findall(
            r"`((?:bevstack|tools|tests|configs|docs|requirements)/[\w./-]+\.\w+)(?:::\w+)?`", page.read_text()
        ):
            if not (ROOT / path).exists() and Path(path).name not in own:
                wrong.append(f"{page.relative_to(ROOT)}: {path}")
    assert wrong == []

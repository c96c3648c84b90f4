"""Configs and command lines: what is wrong is said in one line, with the nearest right thing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bevstack.engine.config import accepted_keys, building, check_components, load_config, parse_value
from bevstack.engine.train_loops import StreamingTrainLoop
from bevstack.errors import InputError
from tests.engine.toy import toy_config, train_toy

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def config_file(tmp_path) -> Path:
    """The toy config as a file."""
    cfg = toy_config(tmp_path / "run")
    cfg.custom_imports = {"imports": ["tests.engine.toy"]}
    path = tmp_path / "toy.py"
    cfg.dump(path)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3", 3),
        ("true", True),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("1,2.5", [1, 2.5]),
        ("a,b", ["a", "b"]),
        ("AdamW", "AdamW"),
        ("{'a': 1}", {"a": 1}),
    ],
)
def test_values_of_the_command_line(text, value) -> None:
    """As mmengine's DictAction reads them."""
    assert parse_value(text) == value


def test_overrides_reach_dicts_and_lists(config_file) -> None:
    options = ["optim_wrapper.optimizer.lr=0.5", "custom_hooks.0.momentum=0.2", "param_scheduler.1.T_max=3", "seed=3"]
    cfg = load_config(config_file, options[:3])
    assert cfg.optim_wrapper.optimizer.lr == 0.5
    assert cfg.custom_hooks[0].momentum == 0.2 and cfg.param_scheduler[1].T_max == 3
    with pytest.raises(InputError, match="seed"):
        load_config(config_file, options)


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("optim_wrapper", "expected key=value"),
        ("=3", "expected key=value"),
        ("a..b=3", "expected key=value"),
        ("modle.dropout=0", "no such key in .*; did you mean 'model'"),
        ("optim_wraper.optimizer.lr=1", "did you mean 'optim_wrapper'"),
        ("optim_wrapper.optimiser.lr=1", "did you mean 'optimizer'"),
        ("custom_hooks.3.momentum=1", "custom_hooks is a list of 1 entries"),
        ("model.type.name=1", "model.type is the value 'ToyModel', not a dict"),
    ],
)
def test_bad_overrides(config_file, option, reason) -> None:
    with pytest.raises(InputError, match=f"--cfg-options: .*{reason}"):
        load_config(config_file, [option])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "config: no such file"),
        ("model = dict(\n", "line 1: "),
        ("model = dict(\n    a=1,\n    b=undefined,\n)\n", "NameError"),
        ("from mmengine.config import read_base\nwith read_base():\n    from .absent import *\n", "absent"),
    ],
)
def test_files_that_are_no_config(tmp_path, content, reason) -> None:
    path = tmp_path / "broken.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=reason) as raised:
        load_config(path)
    assert str(raised.value).startswith(str(path)) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("model__type", "ToyModl", "model.type: unknown name 'ToyModl'; did you mean 'ToyModel'?"),
        ("model__type", "mmdet.RestNet", "model.type: unknown name 'mmdet.RestNet'; did you mean 'ResNet'?"),
        ("model__droput", 0.1, "model: unknown key 'droput' of ToyModel; did you mean 'dropout'?"),
        ("train_cfg__max_epoch", 1, "unknown key 'max_epoch' of ResumableTrainLoop; did you mean 'max_epochs'?"),
        ("optim_wrapper__optimizer__lrr", 1, "optim_wrapper.optimizer: unknown key 'lrr' of AdamW; did you mean 'lr'?"),
        ("optim_wrapper__clip_gradient", {}, "'clip_gradient' of AutocastOptimWrapper; did you mean 'clip_grad'?"),
        ("train_dataloader__dataset__lenght", 3, "unknown key 'lenght' of ToyDataset; did you mean 'length'?"),
    ],
)
def test_unknown_names_and_keys(tmp_path, key, value, reason) -> None:
    cfg = toy_config(tmp_path, **{key: value})
    with pytest.raises(InputError) as raised:
        check_components(cfg)
    assert str(raised.value).endswith(reason)


def test_keyword_arguments_are_followed_to_the_base() -> None:
    """Expected: the parameters of the three constructors, read by hand."""
    assert accepted_keys(StreamingTrainLoop) >= {"runner", "dataloader", "max_epochs", "val_begin", "val_interval"}
    assert "kwargs" not in accepted_keys(StreamingTrainLoop)


def test_what_a_constructor_says_becomes_one_line(tmp_path) -> None:
    """A negative learning rate: torch's own words, with the class that said them; nothing is left locked."""
    with pytest.raises(InputError, match="config: AdamW: Invalid learning rate: -1"):
        train_toy(str(tmp_path), optim_wrapper__optimizer__lr=-1)
    assert not (tmp_path / ".train.lock").exists()


def test_debugging_keeps_the_traceback(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BEVSTACK_DEBUG", "1")
    with pytest.raises(ValueError, match="plain"), building(toy_config(tmp_path)):
        raise ValueError("plain")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tools/train.py", "absent.py"], "error: absent.py: config: no such file"),
        (["tools/test.py", "configs/demo.py", "absent.pth"], "error: absent.pth: checkpoint: no such file"),
    ],
)
def test_tools_print_one_line_and_exit_2(arguments, message) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr == message + "\n" and done.stdout == ""

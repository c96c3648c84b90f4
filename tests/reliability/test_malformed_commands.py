"""M51 to M72: configs, command lines, checkpoints and results that are wrong, through the tools, by the contract.

Each case changes one thing of a config that trains (the first test here), or of a checkpoint that fits it; the line
expected names that thing. Nothing may be left behind: neither a work directory nor a result.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from tables import VERSION, build_root

from tests.engine.front_door import GRID
from tests.reliability.contract import ROOT, call_tool, refused, write_config


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("indexed") / "root")
    assert call_tool("create_data", "nuscenes", "--root", root, "--version", VERSION) == 0
    return root


@pytest.fixture(scope="module")
def trained(root, tmp_path_factory) -> Path:
    """The checkpoint of one epoch: what every case starts from is valid."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_config(folder / "config.py", root, VERSION)
    assert call_tool("train", config, "--work-dir", folder / "run") == 0
    checkpoint = next((folder / "run").glob("epoch_1.pth"))
    assert call_tool("test", config, checkpoint, "--out", folder / "out") == 0
    return checkpoint


def model(**changes):
    """Change parts of the model: ``encoder__num_levels=2``."""

    def change(cfg) -> None:
        for key, value in changes.items():
            *way, last = key.split("__")
            node = cfg.model
            for part in way:
                node = node[part]
            node[last] = value

    return change


def put(key: str, value: object):
    return lambda cfg: cfg.merge_from_dict({key: value})


def no_queue(cfg) -> None:
    """Single clips of no frame; along streams the loop itself refuses all but 1."""
    cfg.train_cfg = {"type": "ResumableTrainLoop", "max_epochs": 1}
    cfg.train_dataloader.sampler = {"type": "DefaultSampler", "shuffle": True}
    cfg.train_dataloader.dataset.num_frames = 0


BACKWARDS = {**GRID, "x_range_m": (15, -15)}
# line -> (change of the config, options of the command line, text of the line on stderr)
CONFIGS = {
    "M51 unknown key": (put("model.encoder.num_layer", 1), (), "unknown key 'num_layer'", "did you mean 'num_layers'?"),
    "M52 unknown name": (put("model.backbone.type", "mmdet.RestNet"), (), "'mmdet.RestNet'", "did you mean 'ResNet'?"),
    "M53 wrong type": (put("train_cfg.max_epochs", "ten"), (), "StreamingTrainLoop", "'ten'"),
    "M53 wrong type in the model": (put("model.encoder.num_heads", "two"), (), "TemporalSelfAttention", "'str'"),
    "M54 classes of another list": (
        put("train_dataloader.dataset.classes", ("pedestrian", "car")), (), "classes", "another order",
    ),
    "M55 extent reversed": (model(encoder__grid=BACKWARDS), (), "x_range_m", "(15.0, -15.0) is not an increasing"),
    "M56 levels do not fit": (model(encoder__num_levels=2), (), "num_levels", "1"),
    "M57 queue of no frame": (no_queue, (), "num_frames", "0 must be at least 1"),
    "M58 negative rate": (put("optim_wrapper.optimizer.lr", -1e-3), (), "AdamW", "Invalid learning rate: -0.001"),
    "M60 no value": (None, ("--cfg-options", "model.encoder.num_layers"), "--cfg-options", "expected key=value"),
    "M60 no such key": (None, ("--cfg-options", "modle.encoder=1"), "modle", "did you mean 'model'?"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_configs(root, tmp_path, capfd, case) -> None:
    change, options, *texts = CONFIGS[case]
    config = write_config(tmp_path / "config.py", root, VERSION, change)
    line = ": ".join(refused(capfd, tmp_path, "train", config, "--work-dir", tmp_path / "run", *options))
    assert all(text in line for text in texts), line


def test_m59_contradictory_flags(root, tmp_path, capfd) -> None:
    config = write_config(tmp_path / "config.py", root, VERSION)
    arguments = (config, tmp_path / "a.pth", "--ground-truth", "--out", tmp_path / "out")
    assert "or --ground-truth without one" in refused(capfd, tmp_path, "visualize", *arguments)[2]


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "no such file"), ("model = dict(\n", "was never closed"), ("model = dict(a=b)\n", "NameError")],
    ids=["M61 no file", "M62 syntax", "M62 name"],
)
def test_files_that_are_no_config(tmp_path, capfd, text, said) -> None:
    if text is not None:
        (tmp_path / "config.py").write_text(text)
    line = refused(capfd, tmp_path, "train", tmp_path / "config.py", "--work-dir", tmp_path / "run")
    assert line[0] == str(tmp_path / "config.py") and said in line[2], line


class Bomb:
    """Pickles to a call that would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights(change):
    """A checkpoint whose weights are changed, otherwise as it was."""

    def write(trained: Path, path: Path) -> None:
        content = torch.load(trained, weights_only=True)
        change(content["state_dict"])
        torch.save(content, path)

    return write


def cut(trained: Path, path: Path) -> None:
    path.write_bytes(trained.read_bytes()[: trained.stat().st_size // 2])


FIRST = "backbone.conv1.weight"
# line -> (writes the file, texts of the line on stderr)
CHECKPOINTS = {
    "M63 a pickle that runs code": (
        lambda _, path: path.write_bytes(pickle.dumps(Bomb(path.parent / "exploded"))), "checkpoint", "",
    ),
    "M63 such a one in a checkpoint": (
        lambda _, path: torch.save({"state_dict": Bomb(path.parent / "exploded")}, path), "checkpoint", "refused",
    ),
    "M64 not a checkpoint": (lambda _, path: path.write_text("hello world"), "checkpoint", ""),
    "M65 truncated": (cut, "checkpoint", ""),
    "M66 another shape": (
        weights(lambda state: state.update({FIRST: torch.zeros(2, 3, 7, 7)})), FIRST, "(2, 3, 7, 7), the model needs (",
    ),
    "M67 missing key": (weights(lambda state: state.pop(FIRST)), "missing key", FIRST),
    "M68 unexpected key": (weights(lambda state: state.update(extra=torch.ones(1))), "unexpected key", "extra"),
    "M69 NaN": (weights(lambda state: state[FIRST].fill_(float("nan"))), FIRST, "not finite"),
    "M71 empty": (lambda _, path: path.write_bytes(b""), "checkpoint", "empty"),
    "M72 missing": (lambda _, path: None, "checkpoint", "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(root, trained, tmp_path, capfd, case) -> None:
    write, *texts = CHECKPOINTS[case]
    config, path = write_config(tmp_path / "config.py", root, VERSION), tmp_path / "a.pth"
    write(trained, path)
    line = refused(capfd, tmp_path, "test", config, path, "--out", tmp_path / "out")
    assert line[0] == str(path) and all(text in ": ".join(line) for text in texts), line
    assert not (tmp_path / "exploded").exists()


def test_m70_results_that_are_cut_off(tmp_path, capfd) -> None:
    """The one command that goes on from results of an earlier run; the file stays as it was."""
    path = tmp_path / "records" / "a.json"
    path.parent.mkdir()
    path.write_text('{"section": "abc", "metr')
    line = refused(capfd, tmp_path, "compare", ROOT / "configs/multitask/comparison.py", "--work-dir", tmp_path)
    assert line[0] == str(path) and line[1] == "record" and "remove the file to run it again" in line[2]
    assert path.read_text() == '{"section": "abc", "metr'

"""Training with kept features: the same bits as without, nothing decoded twice, and refused where that cannot be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from bevstack.datasets.transforms import loading
from bevstack.engine import train as train_tool
from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.config import load_config
from bevstack.errors import InputError
from bevstack.images import read_image
from tests.engine.test_resume import same
from tests.integration.conftest import FRAMES, TRAIN_SCENES

SAMPLES, CAMERAS = TRAIN_SCENES * FRAMES, 6
KEPT = "train_cfg.kept_features={'max_bytes':100000000}"
REQUIRED = "train_cfg.kept_features={'max_bytes':100000000,'required':True}"
TWO_WORKERS = ["train_dataloader.num_workers=2", "train_dataloader.persistent_workers=True"]
REPEATED = "{'_delete_':True,'type':'RepeatDataset','times':2,'dataset':DATASET}"


@pytest.fixture
def decoded(monkeypatch) -> list[Path]:
    """The files that this process decodes, in order."""
    files: list[Path] = []

    def watched(path, *arguments):
        files.append(Path(path))
        return read_image(path, *arguments)

    monkeypatch.setattr(loading, "read_image", watched)
    return files


def train(tiny, work_dir: Path, *options: str, resume: bool = False, last: str = "epoch_2.pth") -> dict:
    """What two epochs end with: weights, average, optimizer, generators and streams."""
    arguments = [str(tiny.config), "--work-dir", str(work_dir), *(["--resume"] if resume else [])]
    assert train_tool.main([*arguments, "--cfg-options", *options]) == 0
    checkpoint = read_checkpoint(work_dir / last)
    states = [{**state, "rng": None} for state in checkpoint["meta"]["rank_states"]]
    return {part: checkpoint[part] for part in ("state_dict", "ema_state_dict", "optimizer")} | {"states": states}


@pytest.fixture(scope="module")
def without(tiny, tmp_path_factory) -> dict:
    """The training in which every epoch computes everything."""
    return train(tiny, tmp_path_factory.mktemp("without"), "train_cfg.kept_features=none")


@pytest.mark.parametrize("room", [100_000_000, 300_000], ids=["all", "some"])
def test_kept_features_change_no_bit_and_are_computed_once(tiny, tmp_path, without, decoded, room) -> None:
    """With room for all samples and for some of them."""
    found = train(tiny, tmp_path, f"train_cfg.kept_features={{'max_bytes':{room}}}")
    assert same(without, found) == []
    again = len(decoded) - SAMPLES * CAMERAS
    assert again == 0 if room > 10**6 else 0 < again < SAMPLES * CAMERAS


def test_half_of_the_free_disk_is_left(tiny, tmp_path, without, decoded, monkeypatch) -> None:
    """On a disk with 600 kB free, as much is kept as with so many bytes less one half."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=600_000))
    assert same(without, train(tiny, tmp_path, KEPT)) == []
    assert SAMPLES * CAMERAS < len(decoded) < 2 * SAMPLES * CAMERAS


def test_two_loader_processes(tiny, tmp_path, without) -> None:
    assert same(without, train(tiny, tmp_path, KEPT, *TWO_WORKERS)) == []


def test_resuming_in_the_middle_of_an_epoch(tiny, tmp_path, without, decoded) -> None:
    """Stopped after one step of the second epoch: what was kept is gone with the process, the bits are the same."""
    every_step = ["default_hooks.checkpoint.by_epoch=False", "default_hooks.checkpoint.interval=1"]
    train_tool.main([str(tiny.config), "--work-dir", str(tmp_path / "a"), "--cfg-options", KEPT, *every_step])
    (tmp_path / "b").mkdir()
    shutil.copy(tmp_path / "a" / f"iter_{SAMPLES // 2 + 1}.pth", tmp_path / "b")
    decoded.clear()
    last = f"iter_{SAMPLES}.pth"
    found = train(tiny, tmp_path / "b", KEPT, *TWO_WORKERS, *every_step, resume=True, last=last)
    assert same(without, found) == []
    assert decoded == [], "it is the loader's processes that decode"


def test_a_folder_outlives_the_run_and_knows_what_it_belongs_to(tiny, tmp_path, without, decoded) -> None:
    """The next run decodes nothing; a picture that was written anew is decoded; other padding starts anew."""
    root = tmp_path / "set"
    shutil.copytree(tiny.root, root)
    folder = tmp_path / "features"
    options = [f"train_cfg.kept_features={{'max_bytes':100000000,'folder':'{folder}'}}"]
    options += [f"train_dataloader.dataset.data_root={root}"]
    assert same(without, train(tiny, tmp_path / "first", *options)) == []
    assert len(decoded) == SAMPLES * CAMERAS and len(list(folder.iterdir())) == 1
    changed = decoded[0]
    decoded.clear()
    assert same(without, train(tiny, tmp_path / "second", *options)) == []
    assert decoded == []
    os.utime(changed)
    assert same(without, train(tiny, tmp_path / "third", *options)) == []
    assert len(decoded) == CAMERAS and changed in decoded
    decoded.clear()
    train(tiny, tmp_path / "fourth", *options, "model.data_preprocessor.pad_divisor=64")
    assert len(decoded) == SAMPLES * CAMERAS and len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["model.backbone.frozen_stages=3"], r"the backbone learns \(\d+ weights, the first is .*\): freeze all of it"),
        (["model.data_preprocessor.grid_mask={}"], "data_preprocessor.grid_mask changes images by chance"),
        (["model.data_preprocessor.photometric={}"], "data_preprocessor.photometric changes images by chance"),
        (["train_dataloader.dataset.pipeline.1.flip_probability=0.5"], "ResizeCropFlipImages .* changes images by cha"),
        (["train_dataloader.dataset.pipeline.1.left=[0,1]"], "ResizeCropFlipImages .* changes images by chance"),
        (["train_dataloader.dataset.pipeline.0.reduced=True"], "LoadMultiViewImages decodes at half size"),
        ([f"train_dataloader.dataset={REPEATED}"], "RepeatDataset has no keep_features"),
    ],
    ids=["backbone", "grid mask", "photometric", "flip", "crop", "reduced", "wrapper"],
)
def test_what_changes_features_is_refused_by_name(tiny, tmp_path, options, reason) -> None:
    dataset = load_config(tiny.config).train_dataloader.dataset.to_dict()
    options = [option.replace("DATASET", repr(dataset)) for option in options]
    with pytest.raises(InputError, match=f"train_cfg.kept_features: {reason}"):
        train_tool.train(load_config(tiny.config, [REQUIRED, *options]), tmp_path)


def test_where_it_is_not_required_training_goes_on_without(tiny, tmp_path) -> None:
    option = "train_cfg.kept_features={'max_bytes':1000,'required':False}"
    train(tiny, tmp_path, option, "model.data_preprocessor.grid_mask={}")
    (log,) = tmp_path.glob("*/*.log")
    assert "computed in every epoch: data_preprocessor.grid_mask changes images by chance" in log.read_text()

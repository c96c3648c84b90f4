"""Weights that are packed: the model comes out as it went in, but for half precision and what others carry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import bevstack.weights
from bevstack import load_model
from bevstack.engine.checkpoint import checkpoint_of, read_checkpoint, write_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.convert_checkpoint import write_safetensors
from bevstack.engine.models import build_model
from bevstack.engine.pack_weights import halved, main, world_at
from bevstack.engine.packaged_parts import norm_of
from bevstack.engine.stored_config import plain_config
from bevstack.errors import InputError
from bevstack.weights.header import read_header
from tests.engine.front_door import CAMERAS, CLASSES, saved, small_config

TRAINED = dict(dataset_meta={"classes": list(CLASSES), "cameras": list(CAMERAS)}, seed=7, iter=50, train_seconds=1800.0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "iter_50.pth", small_config(), **TRAINED)


def packed(checkpoint: Path, out: Path, *options: str) -> Path:
    assert main([str(checkpoint), "--out", str(out), *options]) == 0
    return out


def test_the_file_alone_is_the_model(checkpoint, tmp_path, capsys):
    # Expected: the checkpoint's weights to the bit, its config in every value and kind, its labels and cameras.
    file = packed(checkpoint, tmp_path / "a.safetensors")
    assert capsys.readouterr().out.startswith(f"wrote {file}: ")
    one, other = load_model(checkpoint, device="cpu"), load_model(file, device="cpu")
    weights = other.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in one.state_dict().items())
    assert repr(plain_config(other.config)) == repr(plain_config(one.config))
    assert other.classes == CLASSES and other.cameras == CAMERAS
    header = read_header(file)
    assert (header.seed, header.steps, header.hours, header.licence) == (7, 50, 0.5, "Apache-2.0")


def test_half_precision_is_for_what_is_learned_and_large(checkpoint, tmp_path):
    # Expected: matrices and kernels within half precision's 2^-11 of themselves, all else to the bit; half the bytes.
    file = packed(checkpoint, tmp_path / "a.safetensors", "--half")
    whole = read_checkpoint(checkpoint)["state_dict"]
    stored, model = read_checkpoint(file)["state_dict"], load_model(file, device="cpu")
    kinds = {name: value.dtype for name, value in stored.items()}
    assert kinds["encoder.queries.weight"] == torch.float16 == kinds["backbone.conv1.weight"]
    statistics = [name for name in kinds if "running" in name or name.endswith("bias")]
    assert statistics and all(kinds[name] == torch.float32 for name in statistics)
    for name, value in model.state_dict().items():
        assert value.dtype == whole[name].dtype
        if kinds[name] == torch.float16:
            torch.testing.assert_close(value, whole[name], rtol=2**-11, atol=2**-24)
        else:
            assert torch.equal(value, whole[name]), name


def test_a_weight_beyond_half_precision_stays(checkpoint):
    model = build_model(small_config(), "cpu")
    weights = dict(model.state_dict())
    weights["encoder.queries.weight"] = torch.full_like(weights["encoder.queries.weight"], 1e5)
    assert halved(weights, model)["encoder.queries.weight"].dtype == torch.float32


def test_a_packaged_backbone_is_left_to_its_package(tmp_path):
    # Expected: the file has no weight of the backbone, the model all of them; where training changed one, all stay.
    backbone = dict(type="TimmBackbone", name="tf_efficientnet_lite0", pretrained="packaged", out_indices=(1,))
    cfg = small_config(backbone=backbone, neck=dict(type="TopDownNeck", out_channels=8, out_levels=(0,)))
    content = read_checkpoint(saved(tmp_path / "iter_1.pth", cfg))
    content["state_dict"] = build_model(cfg, "cpu").state_dict()
    write_checkpoint(content, tmp_path / "iter_1.pth")
    file = packed(tmp_path / "iter_1.pth", tmp_path / "a.safetensors")
    assert not any(name.startswith("backbone.") for name in read_checkpoint(file)["state_dict"])
    norm = norm_of(content["state_dict"], "backbone")
    assert read_header(file).packaged == {"backbone": pytest.approx(norm)}
    model = load_model(file, device="cpu").state_dict()
    assert all(torch.equal(value, model[name]) for name, value in content["state_dict"].items())

    content["state_dict"]["backbone.body.conv_stem.weight"][0, 0, 0, 0] += 1e-3
    write_checkpoint(content, tmp_path / "iter_2.pth")
    changed = packed(tmp_path / "iter_2.pth", tmp_path / "b.safetensors")
    assert read_header(changed).packaged == {}
    weights = load_model(changed, device="cpu").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in content["state_dict"].items())

    other = small_config(backbone={**backbone, "pretrained": False}, neck=cfg.model.neck)
    with pytest.raises(InputError, match="a.safetensors: packaged.backbone: is not the model's: it needs"):
        load_model(file, other, "cpu")


def test_packing_again_keeps_what_is_not_given(checkpoint, tmp_path):
    # Expected: metrics and intervals of the files come in; everything else, weights too, stays.
    first = packed(checkpoint, tmp_path / "a.safetensors", "--half", "--command", "train", "--commit", "c0ffee")
    (tmp_path / "metrics.json").write_text(json.dumps({"mAP": 0.5, "odd": None, "nan": float("nan")}))
    (tmp_path / "metrics_intervals.json").write_text(json.dumps({"mAP": [0.4, 0.6]}))
    again = packed(first, tmp_path / "b.safetensors", "--metrics", str(tmp_path / "metrics.json"), "--data", "my data")
    one, other = read_header(first), read_header(again)
    assert other.metrics == {"mAP": 0.5} and other.intervals == {"mAP": [0.4, 0.6]} and other.data == "my data"
    assert (other.cfg, other.command, other.commit, other.seed) == (one.cfg, "train", "c0ffee", 7)
    before, after = (read_checkpoint(file)["state_dict"] for file in (first, again))
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


def test_what_cannot_be_packed_is_one_line_and_leaves_nothing(checkpoint, tmp_path):
    with pytest.raises(InputError, match="a.pth: --out: must end in .safetensors"):
        main([str(checkpoint), "--out", str(tmp_path / "a.pth")])
    content = read_checkpoint(checkpoint)
    content["state_dict"].pop("encoder.queries.weight")
    write_checkpoint(content, tmp_path / "iter_1.pth")
    with pytest.raises(InputError, match="1 missing key: encoder.queries.weight"):
        packed(tmp_path / "iter_1.pth", tmp_path / "b.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["iter_1.pth"]


def test_names_are_taken_where_files_are(checkpoint, tmp_path, monkeypatch):
    # Expected: the name is the file of the shelf; without it, one line.
    monkeypatch.setattr(bevstack.weights, "FOLDER", tmp_path)
    file = packed(checkpoint, tmp_path / "demo.safetensors")
    assert checkpoint_of("demo") == file
    model = load_model("demo", device="cpu")
    assert torch.equal(model.encoder.queries.weight, load_model(checkpoint, device="cpu").encoder.queries.weight)
    cfg = load_config("demo", ["model.heads.boxes.channels=4"])
    assert cfg.filename == str(file) and plain_config(cfg)["model"] == plain_config(small_config())["model"]
    with pytest.raises(InputError, match="full: weights: do not come with this version"):
        load_model("full")
    with pytest.raises(InputError, match="demo: no such key|no such key in demo"):
        load_config("demo", ["modle.type=a"])


def test_a_forged_config_runs_nothing(checkpoint, tmp_path):
    # Expected: text that is a program is refused, and a name that would have to be imported is not.
    file = packed(checkpoint, tmp_path / "a.safetensors")
    content = read_checkpoint(file)
    told = read_header(file).metadata()
    forged = tmp_path / "b.safetensors"
    write_safetensors(content["state_dict"], forged, {**told, "cfg": "import os\nos.abort()\n"})
    for read in (load_model, load_config):
        with pytest.raises(InputError, match="b.safetensors: meta.cfg: is not plain data"):
            read(str(forged))
    hook = told["cfg"] + "custom_hooks = [{'type': 'antigravity.Hook'}]\n"
    write_safetensors(content["state_dict"], forged, {**told, "cfg": hook})
    with pytest.raises(InputError, match=r"custom_hooks.0.type: unknown name 'antigravity.Hook'"):
        load_config(str(forged))


def test_the_world_of_a_set(tmp_path):
    # Expected: the arguments of create_synthetic that its synthetic.json tells, in the command's own words.
    assert world_at(tmp_path, "v1.0-mini") == {}
    told = dict(seed=3, train_scenes=4, val_scenes=1, image_size=[448, 252], frames=20, sweeps=False, rig="suv")
    (tmp_path / "synthetic.json").write_text(json.dumps(told))
    expected = {**told, "image_size": "448x252", "version": "v1.0-mini"}
    assert world_at(tmp_path, "v1.0-mini") == expected
    (tmp_path / "synthetic.json").write_text("{}")
    with pytest.raises(InputError, match="synthetic.json: recipe: lacks 'image_size'"):
        world_at(tmp_path, "v1.0-mini")

"""Models from checkpoints: the file alone is enough, a config given wins, and one line says what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import bevstack
from bevstack import load_model
from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.models import build_model, class_names, precision_of
from bevstack.engine.stored_config import plain_config
from bevstack.errors import InputError
from bevstack.models import BEVPerception
from tests.engine.front_door import CLASSES, saved, small_config, trained


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("model") / "model.pth", small_config())


def test_the_file_alone_is_enough(checkpoint):
    # Expected: the very weights of the file, in a model that is ready to be asked.
    model = load_model(checkpoint, device="cpu")
    assert isinstance(model, BEVPerception) and not model.training and model.classes == CLASSES
    weights = read_checkpoint(checkpoint)["state_dict"]
    assert set(weights) == set(model.state_dict())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert plain_config(model.config) == plain_config(small_config())


def test_a_work_directory_means_its_newest_checkpoint(tmp_path):
    # Expected: the newer of two files, by its queries; one line where there is none.
    for epoch, value in ((1, 3.0), (2, 5.0)):
        content = read_checkpoint(saved(tmp_path / f"epoch_{epoch}.pth", small_config()))
        content["state_dict"]["encoder.queries.weight"].fill_(value)
        torch.save(content, tmp_path / f"epoch_{epoch}.pth")
        os.utime(tmp_path / f"epoch_{epoch}.pth", (epoch, epoch))
    assert (load_model(tmp_path, device="cpu").encoder.queries.weight == 5).all()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: checkpoint: this folder has none"):
        load_model(tmp_path / "empty")


def test_a_config_given_wins(checkpoint, tmp_path):
    # Expected: what the given config says beside the weights; by its file or as it is.
    cfg = small_config()
    cfg.test_dataloader.dataset.classes = ("van", "child")
    cfg.model.heads.boxes.decoding.score_threshold = 0.75
    path = tmp_path / "config.py"
    cfg.dump(path)
    for given in (cfg, path, str(path)):
        model = load_model(checkpoint, given, "cpu")
        assert model.classes == ("van", "child") and model.heads["boxes"].decoding.score_threshold == 0.75
    torch.save({"state_dict": trained(small_config()).state_dict()}, tmp_path / "bare.pth")
    assert load_model(tmp_path / "bare.pth", cfg, "cpu").classes == ("van", "child")


def test_weights_of_another_form_need_a_config_or_carry_one(tmp_path):
    cfg = small_config()
    weights = trained(cfg).state_dict()
    bare, whole = tmp_path / "bare.safetensors", tmp_path / "whole.safetensors"
    save_file(weights, bare)
    save_file(weights, whole, {"config": json.dumps(plain_config(cfg))})
    with pytest.raises(InputError, match=r"bare.safetensors: config: the file carries none; hand it in"):
        load_model(bare)
    for model in (load_model(bare, cfg, "cpu"), load_model(whole, device="cpu")):
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_averaged_weights_are_taken(tmp_path):
    # mmengine's EMAHook writes them as the state_dict and keeps the others beside; tools/test.py reads the state_dict.
    cfg = small_config()
    averaged = trained(cfg).state_dict()
    others = {f"module.{name}": torch.zeros_like(value) for name, value in averaged.items()}
    content = {"state_dict": averaged, "ema_state_dict": others, "meta": {"config": plain_config(cfg)}}
    torch.save(content, tmp_path / "model.pth")
    model = load_model(tmp_path / "model.pth", device="cpu")
    assert all(torch.equal(value, averaged[name]) for name, value in model.state_dict().items())


def test_no_starting_weights_are_looked_for(tmp_path):
    # Expected: a backbone whose own weights lie nowhere; the checkpoint brings them all, in training they are missed.
    backbone = dict(type="TimmBackbone", name="resnet10t", out_indices=(1,), pretrained=str(tmp_path / "absent.pth"))
    cfg = small_config(backbone=backbone, neck=dict(type="TopDownNeck", out_channels=8, out_levels=(0,)))
    bare = small_config(backbone={**backbone, "pretrained": False}, neck=cfg.model.neck)
    weights = build_model(bare, "cpu").state_dict()
    torch.save({"state_dict": weights, "meta": {"config": plain_config(cfg)}}, tmp_path / "model.pth")
    for model in (load_model(tmp_path / "model.pth", device="cpu"), load_model(tmp_path / "model.pth", cfg, "cpu")):
        assert torch.equal(model.state_dict()["backbone.body.conv1.0.weight"], weights["backbone.body.conv1.0.weight"])
        assert model.config.model.backbone.pretrained == backbone["pretrained"]
    with pytest.raises(InputError, match="config: TimmBackbone: .*absent.pth"):
        build_model(cfg, "cpu")


def test_a_part_of_ones_own_is_found_once_it_is_imported(tmp_path, monkeypatch):
    # Expected: one line that names the package, then, after the import, the model.
    code = "from bevstack.models.heads import SemanticSegmentationHead as Base\nfrom bevstack.registry import MODELS\n"
    code += "@MODELS.register_module()\nclass DoorTestHead(Base):\n    pass\n"
    (tmp_path / "door_test_package.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    cfg = small_config()
    plain = plain_config(cfg) | {"custom_imports": {"imports": ["door_test_package"]}}
    plain["model"]["heads"]["map"]["type"] = "DoorTestHead"
    torch.save({"state_dict": trained(cfg).state_dict(), "meta": {"config": plain}}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="model.heads.map.type: unknown name 'DoorTestHead'; import door_test_package"):
        load_model(tmp_path / "model.pth")
    import door_test_package

    assert type(load_model(tmp_path / "model.pth", device="cpu").heads["map"]) is door_test_package.DoorTestHead


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content["state_dict"].pop("encoder.queries.weight"), "1 missing key: encoder.queries.weight"),
        (lambda content: content["state_dict"].update(more=torch.ones(1)), "1 unexpected key: more"),
        (lambda content: content["meta"].pop("config"), "config: the file carries none"),
        (lambda content: content["meta"]["config"]["model"]["encoder"].pop("grid"), "BEVFormerEncoder"),
        (lambda content: content["meta"]["config"]["model"]["encoder"].update(chanels=3), "chanels"),
    ],
)
def test_what_does_not_fit_is_one_line(checkpoint, tmp_path, change, said):
    content = read_checkpoint(checkpoint)
    change(content)
    torch.save(content, tmp_path / "wrong.pth")
    with pytest.raises(InputError) as caught:
        load_model(tmp_path / "wrong.pth", device="cpu")
    assert said in str(caught.value) and str(caught.value).startswith(str(tmp_path / "wrong.pth"))


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="absent.pth: checkpoint: no such file"):
        load_model(tmp_path / "absent.pth")


def test_boxes_that_were_turned_already_are_refused(tmp_path):
    # As tools/test.py refuses them: weights in today's convention, a head that would turn them again.
    cfg = small_config()
    cfg.model.heads.boxes = dict(
        type="OldBoxesDetectionHead", in_channels=8, grid=cfg.model.encoder.grid, classes=CLASSES
    )
    weights = {name: value.clone() for name, value in build_model(cfg, "cpu").state_dict().items()}
    save_file(weights, tmp_path / "a.safetensors", {"box_convention": "mmdet3d-1.x"})
    with pytest.raises(InputError, match="old_boxes=False"):
        load_model(tmp_path / "a.safetensors", cfg, "cpu")


def test_models_without_values():
    # Expected: shapes alone.
    model = build_model(small_config(), "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_config_without_a_model_is_one_line():
    cfg = small_config()
    cfg.pop("model")
    with pytest.raises(InputError, match="config: model: absent"):
        build_model(cfg)


def test_names_of_the_labels():
    # Expected: those of the data; of the data in training; of nuScenes, which the dataset means by default.
    cfg = small_config()
    assert class_names(cfg, {"dataset_meta": {"classes": ["a"]}}) == CLASSES
    cfg.test_dataloader.dataset.pop("classes")
    assert class_names(cfg, {"dataset_meta": {"classes": ["a", "b"]}}) == ("a", "b")
    assert class_names(cfg)[:2] == ("car", "truck") and len(class_names(cfg)) == 10
    cfg.pop("test_dataloader")
    assert class_names(cfg) == ()


def test_the_format_of_the_test():
    cfg = small_config()
    assert precision_of(cfg, "cpu").name == "float32" and precision_of(cfg, "cpu", "bfloat16").name == "bfloat16"
    cfg.test_cfg = dict(dtype="bfloat16")
    assert precision_of(cfg, "cpu").name == "bfloat16"
    with pytest.raises(InputError, match="config: dtype: float16 needs a GPU"):
        precision_of(cfg, "cpu", "float16")


NAMES = {"BEVPrediction", "CameraChecks", "CameraHealth", "Moment", "Motion", "Predictor", "Rig", "Sweeps"}
NAMES |= {"load_model"}


def test_the_names_of_the_door():
    assert set(bevstack.__all__) == NAMES and NAMES <= set(dir(bevstack))
    assert all(getattr(bevstack, name).__name__ == name for name in NAMES)
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        _ = bevstack.load_modell


def test_importing_the_package_opens_no_door():
    # Expected: nothing of the engine until a name is asked for; then the name.
    code = (
        "import sys, bevstack; early = [m for m in sys.modules if m.startswith('bevstack.engine')];"
        "from bevstack import Rig; print(early, Rig.__module__, 'bevstack.engine.models' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] bevstack.structures.moment False"

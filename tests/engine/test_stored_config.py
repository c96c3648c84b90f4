"""The config in a checkpoint: what goes in comes out, and nothing of it runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from bevstack.engine.checkpoint import read_checkpoint, write_checkpoint
from bevstack.engine.component_names import find_component, known_scopes, registered
from bevstack.engine.config import load_config
from bevstack.engine.stored_config import data_settings, literal_config, plain_config, stored_config
from bevstack.errors import InputError
from bevstack.models.heads import SemanticSegmentationHead
from bevstack.registry import MODELS
from tests.engine.front_door import small_config

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ("demo.py", "multitask/all_heads.py", "bevformer/bevformer_base_det_seg.py")


def from_file(tmp_path: Path, cfg: Config, **meta) -> Config:
    """The config after it was in a checkpoint."""
    path = tmp_path / "model.pth"
    write_checkpoint({"state_dict": {}, "meta": {"config": plain_config(cfg), **meta}}, path)
    return stored_config(read_checkpoint(path), path)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_out_as_it_went_in(tmp_path, name):
    # Expected: equal in every value and kind (lists stay lists), and plain enough for JSON.
    cfg = load_config(ROOT / "configs" / name)
    again = from_file(tmp_path, cfg)
    assert again._cfg_dict.to_dict() == cfg._cfg_dict.to_dict()
    assert repr(plain_config(again)) == repr(plain_config(cfg))
    assert json.loads(json.dumps(plain_config(cfg)))["model"]["type"] == "BEVPerception"
    assert again.filename == str(tmp_path / "model.pth") and data_settings(again)["type"] == "NuScenesBEVDataset"


@pytest.mark.parametrize("name", CONFIGS)
def test_the_text_of_an_older_checkpoint_is_read(tmp_path, name):
    # Expected: what mmengine reads from the same text, by running it.
    cfg = load_config(ROOT / "configs" / name)
    path = tmp_path / "old.pth"
    write_checkpoint({"state_dict": {}, "meta": {"cfg": cfg.pretty_text}}, path)
    again = stored_config(read_checkpoint(path), path)
    assert again._cfg_dict.to_dict() == Config.fromstring(cfg.pretty_text, ".py")._cfg_dict.to_dict()


def test_classes_and_the_like_become_names(tmp_path):
    cfg = small_config()
    cfg.model.heads.map.type = SemanticSegmentationHead
    cfg.more = dict(path=Path("a/b"), array=np.array([[1, 2]]), number=np.float32(0.5), odd={1, 2}, call=len)
    again = from_file(tmp_path, cfg)
    place = "bevstack.models.heads.semantic_segmentation.SemanticSegmentationHead"
    assert again.model.heads.map.type == place and registered(place) is SemanticSegmentationHead
    assert again.more == dict(path="a/b", array=[[1, 2]], number=0.5, odd="{1, 2}", call="builtins.len")


def test_literals_are_read():
    text = "a = dict(b=[1, -2.5, 'x'], c={'d e': None, 3: (True, inf)}, f=dict())\ng = ()\n"
    expected = {"b": [1, -2.5, "x"], "c": {"d e": None, 3: (True, float("inf"))}, "f": {}}
    assert literal_config(text) == {"a": expected, "g": ()}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("import os", "line 2: is not a value given to a name"),
        ("b = __import__('os').mkdir('x')", "line 2: holds \"__import__('os').mkdir('x')\", which is no plain value"),
        ("b = [n for n in range(3)]", "line 2: holds '[n for n in range(3)]'"),
        ("b = a", "line 2: holds 'a'"),
        ("b = dict(**{'a': open('x')})", "line 2: holds"),
        ("b = dict([('a', 1)])", "line 2: holds"),
        ("b = {**{}}", "line 2: holds"),
        ("b = -'x'", "line 2: holds"),
        ("b = f'{1}'", "line 2: holds"),
        ("b = b'x'", "line 2: holds"),
        ("b.c = 1", "line 2: is not a value given to a name"),
        ("b, c = 1, 2", "line 2: is not a value given to a name"),
        ("b = (", "line 2: is no Python (SyntaxError)"),
        ("b = " + "[" * 5000, "is no Python"),
    ],
)
def test_whatever_else_is_refused_and_not_run(tmp_path, monkeypatch, line, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as caught:
        literal_config(f"a = 1\n{line}\n")
    assert said in str(caught.value) and not list(tmp_path.iterdir())


ADVICE = "hand it in: load_model(FILE, config=...)"


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({}, f"config: the file carries none; {ADVICE}"),
        ({"cfg": "import os"}, "meta.cfg: is not plain data (line 1: is not a value given to a name) and is not run; "),
        ({"cfg": "model = 3"}, "meta.cfg: describes no model; "),
        ({"config": "{not json"}, "meta.config: is not plain data (Expecting property name"),
        ({"config": ["model"]}, "meta.config: describes no model; "),
        ({"config": {"model": {"type": "BEVPerception"}, "filename": 1}}, "meta.config: is no config ('filename is "),
    ],
)
def test_a_file_without_a_config_is_one_line(meta, said):
    with pytest.raises(InputError) as caught:
        stored_config({"state_dict": {}, "meta": meta}, "a.pth")
    assert str(caught.value).startswith(f"a.pth: {said}")


def test_json_in_a_header_is_read():
    # A safetensors file can carry text alone.
    text = json.dumps(plain_config(small_config()))
    assert stored_config({"meta": {"config": text}}, "a.safetensors").model.type == "BEVPerception"


def changed(place: str, value) -> dict:
    """The meta of a checkpoint whose config has a value at a dotted place."""
    content = plain_config(small_config())
    *way, last = place.split(".")
    node = content
    for step in way:
        node = node[int(step) if isinstance(node, list) else step]
    node[last] = value
    return {"meta": {"config": content}}


HEAD, STEP, FORM = "model.heads.map", "test_dataloader.dataset.pipeline.1", "test_dataloader.dataset.can_bus_form"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (f"{HEAD}.type", "CrowdHead", "model.heads.map.type: unknown name 'CrowdHead'; import the package that"),
        (f"{HEAD}.type", "DenseDetectionHed", "hand in the config; did you mean 'DenseDetectionHead'?"),
        (f"{HEAD}.type", "crowd.CrowdHead", "unknown name 'crowd.CrowdHead'; import crowd first (a checkpoint imports"),
        (f"{HEAD}.type", "os.mkdir", "model.heads.map.type: unknown name 'os.mkdir'"),
        (f"{HEAD}.type", "subprocess.Popen", "model.heads.map.type: unknown name 'subprocess.Popen'"),
        (f"{HEAD}.type", "mmdet.Evil", "model.heads.map.type: unknown name 'mmdet.Evil'"),
        ("model.backbone.norm_cfg", {"type": "os.mkdir"}, "model.backbone.norm_cfg.type: unknown name 'os.mkdir'"),
        ("model.backbone.init_cfg", [{"type": "antigravity"}], "init_cfg.0.type: unknown name 'antigravity'"),
        (f"{HEAD}._scope_", "evil", "model.heads.map._scope_: unknown scope 'evil'"),
        (f"{STEP}.type", "os.mkdir", "pipeline.1.type: unknown name 'os.mkdir'"),
        (FORM, {"type": "os.mkdir"}, "can_bus_form.type: unknown name 'os.mkdir'"),
        ("tracker", {"type": "os.mkdir"}, "tracker.type: unknown name 'os.mkdir'"),
        ("sample_visualizer", {"type": "os.mkdir"}, "sample_visualizer.type: unknown name 'os.mkdir'"),
        ("default_scope", "evil", "default_scope: unknown scope 'evil'"),
    ],
)
def test_names_are_looked_up_and_never_imported(place, value, said):
    # "antigravity" is a module of the standard library that opens a browser when it is imported.
    before = set(sys.modules)
    with pytest.raises(InputError) as caught:
        stored_config(changed(place, value), "a.pth")
    assert said in str(caught.value) and str(caught.value).startswith("a.pth: ")
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] in ("antigravity", "evil", "crowd")}


def test_custom_imports_do_not_run_but_are_told(tmp_path, monkeypatch):
    # Expected: the module of the config is not imported; the line names it.
    (tmp_path / "unasked_for.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    checkpoint = changed("model.heads.map.type", "CrowdHead")
    checkpoint["meta"]["config"]["custom_imports"] = {"imports": ["unasked_for"]}
    with pytest.raises(InputError, match="import unasked_for first"):
        stored_config(checkpoint, "a.pth")
    checkpoint["meta"]["config"]["model"]["heads"]["map"]["type"] = "SemanticSegmentationHead"
    assert stored_config(checkpoint, "a.pth").custom_imports.imports == ["unasked_for"]
    assert "unasked_for" not in sys.modules


def test_what_is_registered_is_found_by_every_name_of_it():
    # Expected: by name, by scope, across OpenMMLab, and by its place in a module that is imported already.
    for name in ("BEVPerception", "bevstack.BEVPerception", "mmdet.ResNet", "BN2d", "LoadMultiViewImages", "DCNv2"):
        assert registered(name) is not None and registered(name) is find_component(name), name
    assert registered("bevstack.models.perception.BEVPerception") is MODELS.get("BEVPerception")
    for name in ("torch.nn.Linear.forward", "os.path.join", "bevstack.engine.models.load_model", "", "."):
        assert registered(name) is None, name
    assert {"bevstack", "mmdet", "mmdet3d", "mmengine"} <= known_scopes()


def test_data_inside_of_wrappers_is_found():
    # Expected: the first dataset that reads samples, of the test's data before the training's.
    inner = {"type": "NuScenesBEVDataset", "pipeline": []}
    pair = {"type": "ConcatDataset", "datasets": [{"type": "RepeatDataset", "dataset": inner}, {"type": "Other"}]}
    loaders = {"train_dataloader": {"dataset": {"type": "Other"}}, "val_dataloader": {"dataset": pair}}
    assert data_settings(loaders) is inner
    assert data_settings({"model": {}}) == {}

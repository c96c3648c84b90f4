"""The header of a file of weights: what goes in comes out, and whatever is wrong with it is one line."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.errors import InputError
from bevstack.weights.header import WeightsHeader, read_header, read_metadata

WHOLE = WeightsHeader(
    cfg="model = {'type': 'BEVPerception'}\n",
    classes=("car", "van"),
    cameras=("CAM_FRONT",),
    rig={"cameras": []},
    recipe={"seed": 3, "image_size": "448x252", "sweeps": False},
    data="synthetic",
    metrics={"mAP": 0.25},
    intervals={"mAP": [0.2, 0.3]},
    calibration={"detection": {"temperature": 1.5, "before": 0.2, "after": 0.1}},
    command="python tools/train.py configs/demo.py",
    seed=3,
    steps=100,
    hours=1.5,
    commit="abc",
    licence="Apache-2.0",
    packaged={"backbone": 12.5},
    box_convention="mmdet3d-1.x",
)


def written(path: Path, **changes: str | None) -> Path:
    """A file of two weights with the header, some of whose texts are changed; None takes one out."""
    told = {name: text for name, text in {**WHOLE.metadata(), **changes}.items() if text is not None}
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4).half()}, path, told)
    return path


def test_what_goes_in_comes_out(tmp_path):
    # Expected: every field (none of which is a default in WHOLE); as safetensors itself reads the texts.
    path = written(tmp_path / "a.safetensors")
    assert read_header(path) == WHOLE
    assert all(getattr(WHOLE, part.name) != part.default for part in fields(WHOLE))
    with safe_open(path, "pt") as file:
        assert read_metadata(path) == file.metadata() == WHOLE.metadata()
    content = read_checkpoint(path)
    assert content["state_dict"]["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert content["meta"]["dataset_meta"] == {"classes": ("car", "van"), "cameras": ("CAM_FRONT",)}
    assert content["meta"]["packaged"] == {"backbone": 12.5} and content["meta"]["seed"] == 3


def test_little_is_enough(tmp_path):
    # Expected: what is not said is empty; only the config is asked for.
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(1)}, path, WeightsHeader(cfg="model = {}").metadata())
    assert read_header(path) == WeightsHeader(cfg="model = {}")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(format=None), "format: is not of this package"),
        (dict(format_version=None), "format: is not of this package"),
        (dict(format_version="2"), "format_version: '2': this version reads 1"),
        (dict(cfg=None), "cfg: absent"),
        (dict(classes="car"), "classes: is no JSON"),
        (dict(classes='{"a": 1}'), "classes: is no list of names"),
        (dict(cameras="[1]"), "cameras: is no list of names"),
        (dict(seed="1.5"), "seed: '1.5' is no whole number from 0 on"),
        (dict(seed="true"), "seed: 'true' is no whole number"),
        (dict(hours="NaN"), "hours: 'NaN' is no number"),
        (dict(steps="-1"), "steps: '-1' is no whole number"),
        (dict(recipe="[]"), "recipe: is no table"),
        (dict(metrics='{"mAP": "high"}'), "metrics.mAP: 'high' is no number"),
        (dict(metrics='{"mAP": Infinity}'), "metrics.mAP: 'inf' is no number"),
        (dict(intervals='{"mAP": [1]}'), "intervals.mAP: is no pair"),
        (dict(intervals='{"mAP": [1, null]}'), "intervals.mAP.1: 'None' is no number"),
        (dict(calibration='{"detection": 3}'), "calibration.detection: is no table"),
        (dict(calibration='{"detection": {"temperature": []}}'), "calibration.detection.temperature: '[]' is"),
        (dict(packaged='{"backbone": {}}'), "packaged.backbone: '{}' is no number"),
        (dict(rig="[" * 10000), "rig: is no JSON"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, said):
    path = written(tmp_path / "a.safetensors", **changes)
    with pytest.raises(InputError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: {said}") and "\n" not in str(caught.value)


def test_a_cut_file_is_one_line(tmp_path):
    # Expected: refused at every length that is not the whole, by the header's own reading already.
    whole = written(tmp_path / "a.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in [0, 4, 8, 9, 40, len(whole) // 2, len(whole) - 8, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        for read in (read_metadata, read_checkpoint):
            with pytest.raises(InputError, match=r"cut.safetensors: "):
                read(cut)


def test_a_damaged_file_is_one_line_or_the_same_header(tmp_path):
    # Expected: whatever byte of the header is another one, an InputError or a header that is whole (as where the byte
    # is in a free text); never anything else.
    whole = bytearray(written(tmp_path / "a.safetensors").read_bytes())
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    damaged, rng, refused = tmp_path / "damaged.safetensors", random.Random(0), 0
    for _ in range(300):
        content = bytearray(whole)
        content[rng.randrange(header)] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        try:
            read_checkpoint(damaged)
            assert isinstance(read_header(damaged), WeightsHeader)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_what_is_no_such_file_is_one_line(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"PK\x03\x04" + b"0" * 100)
    (tmp_path / "b.safetensors").mkdir()
    forged = json.dumps({"__metadata__": ["a"], "x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "c.safetensors").write_bytes(struct.pack("<Q", len(forged)) + forged + b"0000")
    beyond = json.dumps({"x": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    (tmp_path / "d.safetensors").write_bytes(struct.pack("<Q", len(beyond)) + beyond + b"0000")
    said = dict(a="truncated, or no", b="not a file", c="other than texts", d="lies beyond the end", e="no such file")
    for name, reason in said.items():
        with pytest.raises(InputError, match=reason):
            read_metadata(tmp_path / f"{name}.safetensors")

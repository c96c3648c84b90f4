"""The comparison: which variants there are, what is kept, what is trained again, and the page; no real trainings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.errors import InputError
from bevstack.experiments import compare
from bevstack.experiments.comparison_page import beyond, cell, effects
from bevstack.experiments.run_records import RunRecords, read_record
from bevstack.experiments.variants import set_place
from tests.datasets.tables import VERSION, build_root

ROOT = Path(__file__).resolve().parents[2]
TINY = """
classes = ("car", "pedestrian")
grid = dict(shape=(8, 8), x_range_m=(-16.0, 16.0), y_range_m=(-16.0, 16.0))
model = dict(
    type="BEVPerception",
    data_preprocessor=dict(type="BEVPreprocessor"),
    backbone=dict(type="TimmBackbone", name="resnet10t", out_indices=(3,)),
    neck=dict(type="TopDownNeck", out_channels=8, out_levels=(0,)),
    encoder=dict(
        type="BEVFormerEncoder", grid=grid, channels=8, num_levels=1, num_layers=1, num_heads=2, num_points=4,
        temporal_points=0, feed_forward_channels=8,
    ),
    heads=dict(
        detection=dict(type="DenseDetectionHead", in_channels=8, grid=grid, classes=classes, channels=4),
        vehicle=dict(type="SemanticSegmentationHead", in_channels=8, grid=grid, raster="vehicle", classes=("vehicle",)),
    ),
)
dataset = dict(type="NuScenesBEVDataset", data_root="nowhere", version="v1.0-mini")
pipeline = [dict(type="LoadMultiViewImages"), dict(type="ResizeImages", size=(60, 96))]
train_dataloader = dict(batch_size=2, dataset=dict(split="train", pipeline=pipeline, **dataset))
test_dataloader = dict(batch_size=1, dataset=dict(split="val", pipeline=pipeline, **dataset))
test_evaluator = [dict(type="BEVSegmentationMetric", name="vehicle")]
optim_wrapper = dict(type="AutocastOptimWrapper", optimizer=dict(type="AdamW", lr=1e-3))
train_cfg = dict(by_epoch=True, max_epochs=3)
test_cfg = dict()
default_hooks = dict()
custom_hooks = [
    dict(type="BudgetSchedule", max_seconds=5),
    dict(type="MaxSecondsHook", max_seconds=5),
    dict(type="EMAHook", ema_type="ExponentialMovingAverage"),
]
comparison = dict(
    steps=7,
    seeds=(0, 1),
    metrics_of_head=dict(
        detection=[dict(type="CenterDistanceMetric")], vehicle=[dict(type="BEVSegmentationMetric", name="vehicle")]
    ),
    data_root="somewhere",
    sections=[
        dict(
            title="Heads",
            rows=[("detection", "mAP", "detection"), ("vehicle", "iou/vehicle", "vehicle")],
            variants=[
                dict(name="detection", heads=("detection",)),
                dict(name="vehicle", heads=("vehicle",)),
                dict(name="joint"),
            ],
        ),
        dict(
            title="Widths",
            steps=9,
            data_root="elsewhere",
            test_split="val8",
            columns=[
                ("parameters", "parameters/heads.detection"), ("mAP", "mAP"), ("s", "seconds_per_step"),
                ("loss", "logged/loss"),
            ],
            variants=[
                dict(name="wide", set={"model.heads.detection.channels": 8}),
                dict(name="narrow", heads=("detection",), set={"model.heads.detection.channels": 2}),
            ],
        ),
        dict(title="Again", columns=[("mAP", "mAP")], variants=[dict(name="the same", heads=("detection",))]),
    ],
)
"""


@pytest.fixture
def config(tmp_path, monkeypatch) -> Path:
    """The tiny config; its data are not there."""
    path = tmp_path / "tiny_comparison.py"
    path.write_text(TINY)
    monkeypatch.setattr(compare, "scenes_of", lambda config: "trained on 2 scenes (6 samples), scored on 1 (3 samples)")
    return path


def variants_of(path) -> list[compare.Variant]:
    cfg = compare.load_config(path)
    return list(compare.all_variants(cfg, compare.chosen_sections(cfg, None)))


def test_variants_are_whole_configs(config):
    # Expected: by hand from the text above.
    variants = variants_of(config)
    assert [(v.name, v.seed) for v in variants[:3]] == [("detection", 0), ("detection", 1), ("vehicle", 0)]
    assert len(variants) == 6 * 2 and len({v.key for v in variants}) == 5 * 2  # "the same" is "detection"
    by_name = {v.name: v.config for v in variants if v.seed == 1}
    assert list(by_name["vehicle"].model.heads) == ["vehicle"] and list(by_name["joint"].model.heads) == [
        "detection",
        "vehicle",
    ]
    assert [m.type for m in by_name["detection"].test_evaluator] == ["CenterDistanceMetric"]
    assert by_name["wide"].model.heads.detection.channels == 8
    assert by_name["joint"].model.heads.detection.channels == 4
    for name, root, split in (("joint", "somewhere", "val"), ("narrow", "elsewhere", "val8")):
        assert by_name[name].train_dataloader.dataset.data_root == root
        assert by_name[name].test_dataloader.dataset.split == split
        assert by_name[name].train_dataloader.dataset.split == "train"
    for name, cfg in by_name.items():
        steps = 9 if name in ("wide", "narrow") else 7
        assert cfg.custom_hooks[0] == dict(type="BudgetSchedule", max_steps=steps) and len(cfg.custom_hooks) == 2
        assert cfg.randomness.seed == 1 and "comparison" not in cfg


def test_places_of_lists_and_dicts():
    tree = {"a": {"steps": [{"n": 1}, {"n": 2}, {"n": 3}], "gone": 4}}
    set_place(tree, "a.steps.0.n", 5)
    set_place(tree, "a.steps.1", None)
    set_place(tree, "a.gone", None)
    set_place(tree, "a.never", None)
    set_place(tree, "a.new", 6)
    assert tree == {"a": {"steps": [{"n": 5}, {"n": 3}], "new": 6}}


class StoodIn:
    """Stands in for training and test: writes what these write, fails for one head, and counts its calls."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.broken: str | None = None

    def __call__(self, tool, arguments, folder) -> None:
        cfg = Config.fromfile(arguments[0])
        heads = list(cfg.model.heads)
        if tool == "train":
            self.trained.append("+".join(heads))
            if self.broken in heads:
                raise compare.RunFailure("train exited with 2: error: no such thing")
            summary = dict(train_seconds=14.0, steps=7, checkpoint=str(folder / "iter_7.pth"), device="CPU")
            (folder / "train_summary.json").write_text(json.dumps(summary))
            log = folder / "20260101_000000" / "vis_data" / "scalars.json"
            log.parent.mkdir(parents=True)
            lines = [{"loss": 9.0}, {"loss": 1.5 + cfg.randomness.seed}, {"memory": 1}]
            log.write_text("\n".join(map(json.dumps, lines)))
        else:
            number = 0.1 * len(heads) + 0.02 * cfg.randomness.seed
            metrics = dict(mAP=number) if "detection" in heads else {"iou/vehicle": 0.5}
            (folder / "metrics.json").write_text(json.dumps(metrics | {"iou/vehicle": 0.5}))


@pytest.fixture
def calls(monkeypatch) -> StoodIn:
    stood_in = StoodIn()
    monkeypatch.setattr(compare, "_call", stood_in)
    cost = {"parameters/heads.detection": 1.234e6}
    monkeypatch.setattr(compare, "cost_of", lambda config: cost)
    return stood_in


def test_finished_variants_are_kept(config, tmp_path, calls, capsys):
    # Expected: ten different variants are trained once; a second call trains nothing; another step count all of them.
    arguments = [str(config), "--work-dir", str(tmp_path / "work"), "--page", str(tmp_path / "page.md")]
    assert compare.main(arguments) == 0 and len(calls.trained) == 10
    first = (tmp_path / "page.md").read_text()
    assert compare.main(arguments) == 0 and len(calls.trained) == 10
    assert (tmp_path / "page.md").read_text() == first
    assert compare.main([*arguments, "--list"]) == 0
    assert "0 of 10 trainings to do" in capsys.readouterr().out
    assert compare.main([str(config), "--work-dir", str(tmp_path / "none"), "--report"]) == 0
    assert "0 trained, 0 failed" in capsys.readouterr().out and len(calls.trained) == 10
    assert compare.main([*arguments, "--cfg-options", "comparison.steps=8"]) == 0
    assert len(calls.trained) == 16  # the section with steps of its own stays as it is


def test_what_variants_start_from_is_made_once_before_them(config, tmp_path, calls, monkeypatch):
    # Expected: the section's two steps run in order before its first training, and not again once their files are
    # there; where one fails, so do the section's variants, and no other.
    def step(name: str) -> str:
        made = str(tmp_path / "made" / f"{name}.pth")
        return f"dict(tool='make', arguments=[r'{made}'], makes=r'{made}')"

    text = config.read_text().replace('title="Widths",', f'title="Widths", prepare=[{step("a")}, {step("b")}],')
    config.write_text(text)
    made: list[str] = []

    def call(tool, arguments, folder) -> None:
        if tool != "make":
            return calls(tool, arguments, folder)
        if calls.broken == "make":
            raise compare.RunFailure("make exited with 2: error: no such thing")
        made.append(f"{Path(arguments[0]).stem} after {len(calls.trained)}")
        Path(arguments[0]).touch()

    monkeypatch.setattr(compare, "_call", call)
    arguments = [str(config), "--work-dir", str(tmp_path / "work")]
    calls.broken = "make"
    assert compare.main(arguments) == 1 and len(calls.trained) == 6
    page = (tmp_path / "work" / "comparison.md").read_text()
    assert page.count("failed with seed 0: make exited with 2: error: no such thing") == 2
    calls.broken = None
    assert compare.main(arguments) == 0 and len(calls.trained) == 10
    assert made == ["a after 6", "b after 6"]


def test_the_page(config, tmp_path, calls):
    # Expected: means over seeds 0 and 1 (0.1 and 0.12 for one head, 0.2 and 0.22 for two), half their distance.
    assert compare.main([str(config), "--work-dir", str(tmp_path / "work")]) == 0
    page = (tmp_path / "work" / "comparison.md").read_text()
    assert "Each run: 9 steps." in page and "Each run: 7 steps." in page
    assert "seeds 0, 1" in page and "2 scenes (6 samples)" in page
    assert "| detection | mAP | 0.110 ± 0.010 | 0.210 ± 0.010 |" in page
    assert "| vehicle | iou/vehicle | 0.500 ± 0.000 | 0.500 ± 0.000 |" in page
    assert "| narrow | 2 | 1.23 M | 0.110 ± 0.010 | 2.000 ± 0.000 | 2.000 ± 0.500 |" in page
    assert "| the same | 2 | 0.110 ± 0.010 |" in page and "Not done yet" not in page
    files = sorted((tmp_path / "work" / "records").iterdir())
    assert len(files) == 10 and files[0].name.startswith("heads_detection_seed-0_")  # "the same" is kept there, too
    assert {"cost", "metrics", "scores", "training", "commit", "machine"} <= set(json.loads(files[0].read_text()))


def test_a_failure_stops_nothing_else(config, tmp_path, calls):
    # Expected: exit code 1; what failed is said on the page and tried again the next time, alone.
    calls.broken = "vehicle"
    arguments = [str(config), "--work-dir", str(tmp_path / "work")]
    assert compare.main(arguments) == 1
    page = (tmp_path / "work" / "comparison.md").read_text()
    assert "`vehicle` failed with seed 1: train exited with 2: error: no such thing" in page
    assert (
        "| detection | mAP | 0.110 ± 0.010 | - |" in page
        and "Not done yet: `vehicle` (0 of 2), `joint` (0 of 2)." in page
    )
    calls.broken, calls.trained = None, []
    assert compare.main(arguments) == 0
    assert set(calls.trained) == {"vehicle", "detection+vehicle"} and len(calls.trained) == 6


def test_one_section_alone(config, tmp_path, calls):
    assert compare.main([str(config), "--work-dir", str(tmp_path), "--only", "widths"]) == 0
    assert set(calls.trained) == {"detection", "detection+vehicle"} and len(calls.trained) == 4
    assert "## Heads" not in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('heads=("vehicle",)', 'heads=("vehicel",)', "there is no head 'vehicel' in the base config"),
        ("steps=7", "steps=0", "steps or seconds: one of them must be a positive number, not 0"),
        ('title="Again"', 'titel="Again", title="Again"', "comparison.sections.2: unknown key 'titel'"),
        ('"model.heads.detection.channels": 2', '"model.head.detection.channels": 2', "the config has no 'head' there"),
        ('"model.heads.detection.channels": 2', '"model.heads.detection.chanels": 2', "did you mean 'channels'"),
    ],
)
def test_mistakes_are_told_before_anything_is_trained(config, tmp_path, calls, old, new, message):
    assert old in TINY
    config.write_text(TINY.replace(old, new))
    with pytest.raises(InputError, match=message):
        compare.main([str(config), "--work-dir", str(tmp_path / "work")])
    assert calls.trained == [] and not (tmp_path / "work").exists()


def test_a_broken_file_of_results_is_told(config, tmp_path, calls):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.json").write_text("{")
    with pytest.raises(InputError, match="remove the file to run it again"):
        compare.main([str(config), "--work-dir", str(tmp_path)])


def test_wall_clock_and_configs_of_their_own(config, tmp_path):
    # Expected: a budget of seconds ends schedule and training; a lever's own config is taken whole, the section's and
    # the entry's changes on top; what is taken in from elsewhere is no training of this comparison.
    (tmp_path / "lever.py").write_text(TINY.partition("comparison = ")[0].replace("channels=4", "channels=6"))
    section = """dict(title="Clock", seconds=5, columns=[("mAP", "mAP")], base="own", variants=[
        dict(name="own", config="lever.py", set={"optim_wrapper.optimizer.lr": 2e-3}),
        dict(name="before", taken=True),
    ]), dict(title="Again"'"""[:-1]
    config.write_text(TINY.replace('dict(title="Again"', section))
    variants = [v for v in variants_of(config) if v.section == "Clock"]
    assert [v.name for v in variants] == ["own", "own"] and variants[0].budget == "5 seconds of training"
    cfg = variants[1].config
    assert cfg.model.heads.detection.channels == 6 and cfg.optim_wrapper.optimizer.lr == 2e-3
    assert [(hook.type, hook.get("max_seconds")) for hook in cfg.custom_hooks[:2]] == [
        ("BudgetSchedule", 5),
        ("MaxSecondsHook", 5),
    ]
    assert cfg.train_dataloader.dataset.data_root == "somewhere" and cfg.randomness.seed == 1


def test_runs_of_elsewhere_are_taken_in(config, tmp_path, calls, capsys):
    # Expected: the folder's numbers stand on the page, nothing is trained for them, neither then nor later.
    folder = tmp_path / "elsewhere" / "test"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text('{"mAP": 0.9, "mAVE": null}')
    summary = {"train_seconds": 14.0, "steps": 7, "device": "CPU", "checkpoint": "/one/machine/iter_7.pth"}
    (folder.parent / "train_summary.json").write_text(json.dumps(summary))
    arguments = [str(config), "--work-dir", str(tmp_path / "work"), "--records", str(tmp_path / "kept")]
    for seed in ("0", "1"):
        assert compare.main([*arguments, "--take", "widths", "narrow", seed, str(folder)]) == 0
    assert calls.trained == [] and "| narrow | 2 | 1.23 M | 0.900 ± 0.000 |" in (
        (tmp_path / "work" / "comparison.md").read_text()
    )
    record = read_record(tmp_path / "kept" / "widths_narrow_seed-1_taken.json")
    assert record["key"] is None and record["metrics"] == {"mAP": 0.9} and record["training"]["steps"] == 7
    assert record["training"]["checkpoint"] == "iter_7.pth"
    assert compare.main(arguments) == 0 and len(calls.trained) == 8
    with pytest.raises(InputError, match="metrics.json: metrics: tools/test.py writes it"):
        compare.main([*arguments, "--take", "widths", "narrow", "0", str(tmp_path)])
    with pytest.raises(InputError, match="0 variants are called 'narow'"):
        compare.main([*arguments, "--take", "widths", "narow", "0", str(folder)])


def record_of(name: str, seed: int, **metrics: float) -> dict:
    texts = dict.fromkeys(("budget", "commit", "machine", "data", "source"), "")
    numbers = dict(metrics=metrics, scores={}, cost={}, training={}, logged={})
    return {"section": "S", "name": name, "seed": seed, "key": f"{name}{seed}", **texts, **numbers}


def test_effects_beyond_the_spread(tmp_path):
    # Expected, by hand: 0.5 to 0.6 lies above all of 0.3 to 0.45, 0.4 to 0.6 does not; one run says nothing.
    base = [record_of("base", n, mAP=value) for n, value in enumerate((0.3, 0.4, 0.45))]
    above = [record_of("above", n, mAP=value) for n, value in enumerate((0.5, 0.55, 0.6))]
    among = [record_of("among", n, mAP=value) for n, value in enumerate((0.4, 0.5, 0.6))]
    assert cell(above, "mAP", base) == "**0.550 ± 0.050**" and cell(among, "mAP", base) == "0.500 ± 0.100"
    assert beyond([0.1, 0.2], [0.3, 0.4]) and not beyond([0.1], [0.3, 0.4])
    section = dict(base="base", tables={"T": [("mAP", "mAP")]})
    lines = effects(section, {"base": base, "above": above, "among": among, "one": above[:1]})
    assert [line.partition("spread: ")[2] for line in lines] == [
        "mAP +0.167",
        "nothing",
        "one run says nothing of that",
        "",
    ]
    records = RunRecords(tmp_path / "records")
    for record in (*base, *above):
        records.keep(record)
    again = RunRecords(tmp_path / "records")
    assert again.of("S", "above", 2, "above2")["metrics"] == {"mAP": 0.6} and len(again.placed("S", "base", 0)) == 1
    assert again.of("S", "above", 2, "another") is None and again.of("S", "above", 2, None) is None


def test_a_study_that_is_ended_ends_its_training_first(tmp_path):
    # Expected: the child is told to end, ends well (a training then writes its checkpoint), and nothing stays behind.
    child = "import signal,sys,time;f=open(sys.argv[1],'w');"
    child += "signal.signal(signal.SIGTERM,lambda *_:(f.write('saved'),f.close(),sys.exit(0)));"
    child += "f.write('on;');f.flush();time.sleep(60)"
    parent = "import subprocess,sys;from bevstack.experiments.compare import _ended_first;"
    parent += "p=subprocess.Popen([sys.executable,'-c',sys.argv[1],sys.argv[2]]);print(p.pid,flush=True)\n"
    parent += "with _ended_first(p): p.wait()"
    state = tmp_path / "state"
    process = subprocess.Popen([sys.executable, "-c", parent, child, str(state)], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    while not (state.exists() and state.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM and state.read_text() == "on;saved"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_detached(config, tmp_path, calls, monkeypatch, capsys):
    # Expected: the same command without the flag, in a session of its own; nothing is trained here. Nothing is started
    # where all is done.
    started = []
    arguments = [str(config), "--work-dir", str(tmp_path / "work"), "--detach"]
    with monkeypatch.context() as patch:
        patch.setattr(compare.subprocess, "Popen", lambda *call, **more: started.append((*call, more)) or FakeChild)
        assert compare.main(arguments) == 0 and calls.trained == []
        command, more = started[0]
        assert command[3:] == arguments[:-1] and more["start_new_session"]
        assert "kill 42 stops it" in capsys.readouterr().out
    assert compare.main(arguments[:-1]) == 0 and len(calls.trained) == 10
    with monkeypatch.context() as patch:
        patch.setattr(compare, "detached", lambda *_: pytest.fail("there was nothing to start"))
        assert compare.main(arguments) == 0


class FakeChild:
    pid = 42


def test_cost_in_closed_form(config):
    # Expected: of the segmentation head: two 3 x 3 convolutions 8 -> 64 -> 64 and a 1 x 1 to one layer, on 8 x 8 cells;
    # BatchNorm has two parameters a channel and no multiply-adds here. Of the neck: 1 x 1 and 3 x 3 on six maps 4 x 6
    # (60 x 96 pixels padded to 64 x 96, stride 16).
    (joint,) = [v.config for v in variants_of(config) if v.name == "joint" and v.seed == 0]
    cost = compare.cost_of(joint)
    assert cost["multiply_adds/heads.vehicle"] == 64 * (8 * 64 * 9 + 64 * 64 * 9 + 64)
    assert cost["parameters/heads.vehicle"] == 8 * 64 * 9 + 64 * 64 * 9 + 2 * 2 * 64 + 64 + 1
    assert cost["multiply_adds/neck"] == 6 * 24 * (256 * 8 + 8 * 8 * 9)
    assert cost["multiply_adds"] == sum(v for k, v in cost.items() if k.startswith("multiply_adds/"))


def test_operators_are_counted_whatever_module_they_stand_in():
    # Closed form: a 3 x 3 convolution, attention's two products of 4 x 4 tokens of 5 channels, and a 3D convolution.
    from bevstack.experiments.multiply_adds import count_operators

    class Mixed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.nn.Conv2d(3, 5, 3, padding=1)
            self.clip = torch.nn.Conv3d(3, 2, (3, 1, 1))

        def forward(self, images):
            tokens = self.plain(images).flatten(2).mT
            self.clip(images.unsqueeze(2).expand(-1, -1, 3, -1, -1))
            return (tokens @ tokens.mT) @ tokens

    expected = 16 * 5 * 27 + 2 * 16 * 16 * 5 + 16 * 2 * 9
    assert count_operators(Mixed().to("meta"), torch.empty(1, 3, 4, 4, device="meta")) == expected


def test_scenes_are_counted_by_the_datasets(tmp_path):
    # Expected: the tiny root's two scenes of four and three samples.
    root = build_root(tmp_path / "root")
    write_index(root, VERSION, maps=False, progress=lambda line: None)
    dataset = dict(type="NuScenesBEVDataset", data_root=str(root), version=VERSION, pipeline=[dict(type="Nothing")])
    train = dict(dataset=dict(dataset, split="all"))
    config = Config(dict(train_dataloader=train, test_dataloader=dict(dataset=dict(dataset, split="tiny_val"))))
    assert compare.scenes_of(config) == "trained on 2 scenes (7 samples), scored on 1 scenes (3 samples)"

"""``tools/visualize.py`` from the command line's arguments to the files: with and without a model."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from PIL import Image

from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.engine.config import load_config
from bevstack.engine.evaluation_loops import StreamingTestLoop
from bevstack.engine.models import build_model
from bevstack.engine.visualize import build_dataset, camera_views, choose_samples, main, predicted_samples
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.registry import LOOPS, MODELS, VISUALIZERS
from bevstack.structures import BEVMemory
from bevstack.visualization import PanelPainter
from tests.datasets.tables import VERSION, build_root

CONFIG = """
default_scope = "bevstack"
dataset = dict(
    type="NuScenesBEVDataset", data_root={root!r}, version={version!r}, split="tiny_val",
    pipeline=[dict(type="LoadMultiViewImages"), dict(type="ResizeImages", scale=0.5), dict(type="PackBEVInputs")],
)
train_dataloader = dict(dataset=dict(dataset, split="tiny_train"))
test_dataloader = dict(dataset=dataset)
test_cfg = dict(type={loop!r})
model = dict(type="MemoryProbe", data_preprocessor=dict(type="BEVPreprocessor"))
sample_visualizer = dict(type="SampleVisualizer", camera_height_px=60)
"""
MAGENTA = (255, 0, 254)
seen: list[tuple[str, ...]] = []


@VISUALIZERS.register_module()
class ProbePainter(PanelPainter):
    """Draws what the model below predicts, and is named nowhere."""

    fields = ("pred_probe",)

    def paint(self, sample, window):
        return np.full((20, 20, 3), MAGENTA, np.uint8)


@MODELS.register_module()
class MemoryProbe(BaseModel):
    """Predicts one car 10 m ahead and notes which memory it was given."""

    def __init__(self, data_preprocessor=None):
        super().__init__(data_preprocessor)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        assert not self.training and self.weight.item() == 3.0
        memory = inputs.memory
        remembered = memory is not None and bool(memory.valid.any())
        seen.append((data_samples[0].token, data_samples[0].prev_token if remembered else ""))
        for sample in data_samples:
            sample.pred_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(torch.tensor([[0, 10, -1.5, 4, 2, 2, 1.57, 0, 0]]), box_dim=9),
                scores_3d=torch.tensor([0.9]),
                labels_3d=torch.tensor([0]),
            )
            sample.set_field(True, "pred_probe")
        grid = BEVGrid((2, 2))
        memory = BEVMemory(torch.zeros(1, 1, 1, *grid.shape), grid, torch.eye(4)[None, None], torch.ones(1, 1) > 0)
        return (data_samples, memory) if mode == "stream_predict" else data_samples


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = build_root(tmp_path_factory.mktemp("nuscenes"))
    write_index(folder, VERSION, maps=False, progress=lambda line: None)
    return folder


@pytest.fixture
def config(root, tmp_path):
    def write(loop="StreamingTestLoop"):
        path = tmp_path / "config.py"
        path.write_text(CONFIG.format(root=str(root), version=VERSION, loop=loop))
        return str(path)

    return write


@pytest.fixture
def checkpoint(tmp_path):
    torch.save({"state_dict": {"weight": torch.tensor([3.0])}}, tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_ground_truth_without_a_model(config, tmp_path, capsys):
    # Expected: the three samples of the test dataset's scene, one GIF, one line.
    assert main(["--ground-truth", config(), "--out", str(tmp_path / "vis"), "--fps", "2"]) == 0
    pngs = [f"scene-0003/{k:04d}_s1k{k}.png" for k in range(3)]
    assert files(tmp_path / "vis") == ["scene-0003.gif", *pngs]
    with Image.open(tmp_path / "vis" / "scene-0003.gif") as clip:
        assert clip.n_frames == 3 and clip.info["duration"] == 500
    out = capsys.readouterr().out
    table, _, line = out.rstrip().rpartition("\n")
    assert line == f"3 picture(s) of 1 scene(s) and 1 GIF clip(s) in {tmp_path / 'vis'}"
    assert table.startswith("plausibility") and "3 of 3 (100 %)" in table  # of any dataset, before it is drawn


def test_predictions_stream_along_each_scene(config, checkpoint, tmp_path):
    # Expected: memory of the predecessor everywhere but at a scene's start, over both scenes; the painter's own panel,
    # 2 x 60 + 2 px, is in the picture.
    seen.clear()
    arguments = [config(), checkpoint, "--out", str(tmp_path / "vis"), "--split", "all", "--format", "mp4"]
    assert main(arguments) == 0
    first, second = [f"s0k{k}" for k in range(4)], [f"s1k{k}" for k in range(3)]
    assert seen == list(zip(first + second, ["", *first[:-1], "", *second[:-1]], strict=True))
    assert {"scene-0001.mp4", "scene-0003.mp4"} <= set(files(tmp_path / "vis"))
    picture = np.asarray(Image.open(tmp_path / "vis" / "scene-0001" / "0000_s0k0.png"))
    assert 0.8 * 122 * 122 < (np.abs(picture.astype(int) - MAGENTA).sum(-1) < 9).sum() <= 122 * 122


@LOOPS.register_module()
class OwnLoop(StreamingTestLoop):
    """Somebody's own loop along streams, whose name says nothing."""


def test_a_loop_is_known_by_what_it_is(config, checkpoint, tmp_path):
    # Expected: memory as with StreamingTestLoop, from which it is made.
    seen.clear()
    main([config("OwnLoop"), checkpoint, "--out", str(tmp_path / "vis"), "--max-samples", "2"])
    assert seen == [("s1k0", ""), ("s1k1", "s1k0")]


def test_a_page_beside_the_pictures_or_alone(config, checkpoint, tmp_path, capsys):
    # Expected: the three samples of the scene in one file; the car predicted at (0, 10), said to have found a true car
    # only where one of the tables' lies nearer than 2 m; without --out nothing but the page.
    page = tmp_path / "pages" / "clip.html"
    assert main([config(), checkpoint, "--html", str(page)]) == 0
    assert files(tmp_path / "pages") == ["clip.html"]
    assert capsys.readouterr().out == f"page of 3 sample(s), {page.stat().st_size / 1e6:.1f} MB: {page}\n"
    (data,) = re.findall(r'type="application/json">(.*?)</script>', page.read_text())
    content = json.loads(data)
    assert content["title"] == "config: weights.pth"
    assert [moment["token"] for moment in content["moments"]] == ["s1k0", "s1k1", "s1k2"]
    for moment in content["moments"]:
        (box,) = moment["predicted"]
        cars = [np.hypot(*np.subtract(b["box"][:2], [0, 10])) for b in moment["truth"] if b["name"] == box["name"]]
        assert moment["matched"] and ("found" in box) == (min(cars, default=9) < 2)
    out = ["--out", str(tmp_path / "vis"), "--format", "none"]
    assert main(["--ground-truth", config(), *out, "--html", str(page), "--max-samples", "1"]) == 0
    assert files(tmp_path / "vis") == ["scene-0003/0000_s1k0.png"]
    (data,) = re.findall(r'type="application/json">(.*?)</script>', page.read_text())
    assert json.loads(data)["title"] == "config: ground truth" and not json.loads(data)["moments"][0]["predicted"]


def test_a_recording_alone(config, checkpoint, tmp_path, capsys):
    # Expected: the three samples of the scene with the car predicted 10 m ahead, its middle 1 m over its lower face;
    # predictions from above; no B_t, which this model does not have.
    pytest.importorskip("rerun", reason="the extra 'rerun' is not installed")
    from rerun import dataframe

    file = tmp_path / "made" / "clip.rrd"
    assert main([config(), checkpoint, "--rerun", str(file)]) == 0
    assert files(tmp_path / "made") == ["clip.rrd"]
    size = f"{file.stat().st_size / 1e6:.1f} MB"
    assert capsys.readouterr().out.endswith(f"recording of 3 sample(s), {size}: rerun {file}\n")
    read = dataframe.load_recording(file)
    boxes = read.view(index="moment", contents="/world/car/boxes/predicted").select().read_all().to_pydict()
    assert boxes["/world/car/boxes/predicted:PoseTranslation3D"] == [[[0, 10, -0.5]]] * 3
    panels = {column.entity_path.rpartition("/")[2] for column in read.schema().component_columns()
              if column.entity_path.startswith("/bev/")}  # fmt: skip
    assert "prediction" in panels and "B_t" not in panels


def test_samples_out_of_order_are_not_drawn_without_memory(config):
    # Expected: the predecessor of s1k2 belongs to the set and was not drawn just before.
    cfg = load_config(config())
    model = build_model(cfg, "cpu").eval()
    torch.nn.init.constant_(model.weight, 3.0)
    with pytest.raises(InputError, match="s1k1 comes before s1k2 in the set but was not predicted just before it"):
        list(predicted_samples(cfg, build_dataset(cfg, None), [0, 2], model))


def test_a_tracker_in_the_config_makes_a_panel(config, checkpoint, tmp_path):
    # Expected: the usual picture and one more panel as high as the two rows of cameras (square, 2 x 60 + 2 px and the
    # gap of 10 px), in every picture and in the clip.
    plain, tracked = config(), tmp_path / "tracked.py"
    tracked.write_text((tmp_path / "config.py").read_text() + 'tracker = dict(type="CenterPointTracker")\n')
    for path, out in ((plain, "plain"), (str(tracked), "tracked")):
        main([path, checkpoint, "--out", str(tmp_path / out), "--max-samples", "2", "--layout", "wide"])
    for name in ("0000_s1k0.png", "0001_s1k1.png"):
        pictures = [np.asarray(Image.open(tmp_path / out / "scene-0003" / name)) for out in ("plain", "tracked")]
        assert pictures[1].shape[1] - pictures[0].shape[1] == 122 + 10
    with Image.open(tmp_path / "tracked" / "scene-0003.gif") as clip:
        assert clip.n_frames == 2


def test_models_without_memory_predict_sample_by_sample(config, checkpoint, tmp_path):
    seen.clear()
    main([config("AutocastTestLoop"), checkpoint, "--out", str(tmp_path / "vis"), "--max-samples", "2"])
    assert seen == [("s1k0", ""), ("s1k1", "")]
    assert len(files(tmp_path / "vis")) == 3


def test_cameras_see_what_the_index_says(config, root):
    # Expected: a point 10 m ahead of the front camera (0.5 m before and 0.3 m below LIDAR_TOP) falls on the principal
    # point of its original, not resized, image.
    from bevstack.engine.config import load_config

    dataset = build_dataset(load_config(config()), "train")
    assert dataset.split == "tiny_train" and dataset.test_mode
    sample = dataset[0]["data_samples"]
    front = camera_views(dataset, sample)[0]
    assert (front.name, front.image.shape) == ("CAM_FRONT", (36, 64, 3))
    point = front.pixels_from_camera @ (front.camera_from_bev @ [0, 10.5, -0.3, 1])[:3]
    np.testing.assert_allclose(point[:2] / point[2], [32, 18], atol=1e-6)
    assert point[2] == pytest.approx(10)


def test_a_wrapped_dataset_is_drawn_as_what_it_wraps(config):
    # Expected: split and test mode are those of the dataset inside; the wrapper takes neither.
    from bevstack.engine.config import load_config

    cfg = load_config(config())
    for loader in (cfg.test_dataloader, cfg.train_dataloader):
        loader.dataset = dict(type="RepeatDataset", times=1, dataset=loader.dataset)
    for split, name, count in (("train", "tiny_train", 4), ("tiny_val", "tiny_val", 3), (None, "tiny_val", 3)):
        dataset = build_dataset(cfg, split)
        assert (dataset.datasets[0].split, dataset.datasets[0].test_mode, len(dataset)) == (name, True, count)
    assert "test_mode" not in cfg.train_dataloader.dataset.dataset


def test_augmented_boxes_are_seen_where_they_are(config):
    # Expected: turning the BEV frame turns boxes and cameras together; pixels stay.
    from bevstack.engine.config import load_config

    dataset = build_dataset(load_config(config()), None)
    sample = dataset[0]["data_samples"]
    turn = np.diag([-1.0, 1.0, 1.0, 1.0])
    plain = camera_views(dataset, sample)[0]
    sample.set_metainfo({"augmented_from_bev": turn})
    turned = camera_views(dataset, sample)[0]
    point = np.array([2.0, 9.0, 1.0, 1.0])
    np.testing.assert_allclose(turned.camera_from_bev @ turn @ point, plain.camera_from_bev @ point)


def test_scenes_are_chosen_by_name(config):
    from bevstack.engine.config import load_config

    dataset = build_dataset(load_config(config()), "all")
    assert choose_samples(dataset, ["scene-0003"], None) == [4, 5, 6]
    assert choose_samples(dataset, None, 5) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{config}", "--out", "{out}"], "CHECKPOINT: give a checkpoint, or --ground-truth"),
        (["{config}", "{weights}", "--ground-truth", "--out", "{out}"], "CHECKPOINT: give a checkpoint"),
        (["{config}", "--ground-truth", "--out", "{out}", "--fps", "0"], "--fps: must be positive, not 0"),
        (["{config}", "--ground-truth", "--out", "{out}", "--scenes", "scene-03"], "no scene 'scene-03'; nearest"),
        (["{config}", "--ground-truth", "--out", "{out}", "--split", "tiny"], "'tiny' is none of"),
        (["{config}", "{out}.pth", "--out", "{out}"], "checkpoint: no such file"),
        (["{config}", "--ground-truth", "--out", "{weights}"], "--out: cannot be written"),
        (["{config}", "--ground-truth"], "--out: say what to write"),
        (["{config}", "--ground-truth", "--out", "{out}", "--features"], "--features, --attention: show what a model"),
        (["{config}", "{weights}", "--out", "{out}", "--attention", "ahead"], "ahead: is no place; write X,Y"),
        (["{config}", "{weights}", "--out", "{out}", "--attention"], "MemoryProbe: has no BEV encoder"),
        (["{config}", "--ground-truth", "--html", "{weights}/clip.html"], "--html: cannot be written"),
        (["{config}", "--ground-truth", "--html", "."], "--html: is a folder"),
        (["{config}", "--ground-truth", "--rerun", "."], "--rerun: is a folder; name a file, as clip.rrd"),
    ],
)  # fmt: skip
def test_mistakes_are_told_and_nothing_is_drawn(config, checkpoint, tmp_path, arguments, said):
    places = {"config": config(), "weights": checkpoint, "out": str(tmp_path / "vis")}
    with pytest.raises(InputError) as caught:
        main([argument.format(**places) for argument in arguments])
    assert said in str(caught.value)
    assert not (tmp_path / "vis").exists() and sorted(os.listdir(tmp_path)) == ["config.py", "weights.pth"]

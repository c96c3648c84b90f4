"""``tools/browse_data.py``: augmented clips as the model gets them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.engine.browse_data import carried_back, draw_clip, frame_views, main, training_dataset
from bevstack.engine.config import load_config
from bevstack.errors import InputError
from tests.datasets.tables import VERSION, build_root

CONFIG = """
default_scope = "bevstack"
train_dataloader = dict(dataset=dict(
    type="NuScenesBEVDataset", data_root={root!r}, version={version!r}, split="tiny_train", num_frames=3,
    pipeline=[
        dict(type="LoadMultiViewImages"),
        dict(type="ResizeImages", scale=0.5),
        dict(type="BEVRotateScaleFlip", flip_x_probability=0.5),
        dict(type="PackBEVInputs"),
    ],
))
sample_visualizer = dict(type="SampleVisualizer", camera_height_px=60)
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("nuscenes")
    root = build_root(folder / "root")
    write_index(root, VERSION, maps=False, progress=lambda line: None)
    (folder / "config.py").write_text(CONFIG.format(root=str(root), version=VERSION))
    return str(folder / "config.py")


def test_pictures_of_samples_and_epochs(config, tmp_path, capsys):
    # Expected: two of the split's four samples, each in two epochs, whose augmentation is another.
    out = tmp_path / "out"
    assert main([config, "--out", str(out), "--max-samples", "2", "--repeat", "2", "--epoch", "3"]) == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == [f"{n:06d}_epoch{epoch}_s0k{n}.png" for n in (0, 3) for epoch in (3, 4)]
    assert capsys.readouterr().out == f"4 picture(s) of 2 sample(s) in {out}\n"
    pictures = [np.asarray(Image.open(out / name)) for name in names]
    assert not np.array_equal(pictures[2], pictures[3])
    # the first sample of a scene has no frames before it, the last has two
    assert pictures[2].shape[0] > pictures[0].shape[0] + 150


def test_cameras_are_what_the_model_gets(config):
    # Expected: a point of the augmented frame falls where the packed matrices say; the image is the halved one.
    dataset = training_dataset(load_config(config), "train")
    dataset.set_epoch(1)
    packed = dataset[3]
    views = frame_views(packed["inputs"], packed["data_samples"], 2)
    assert [view.image.shape for view in views] == [(18, 32, 3)] * 6 and views[0].name == "CAM_FRONT"
    assert np.array_equal(views[0].image, packed["inputs"]["images"][2, 0].permute(1, 2, 0))
    np.testing.assert_array_equal(views[1].pixels_from_camera, packed["inputs"]["pixels_from_camera"][2, 1])
    assert np.allclose(np.linalg.det(views[0].camera_from_bev[:3, :3]) ** 2, 1, atol=0.4), "turned and scaled"
    first, last = (draw_clip(dataset[n], load_config(config)) for n in (0, 3))
    assert first.dtype == np.uint8 and last.std() > 5


def test_boxes_are_carried_back():
    # Expected, by hand: half a second before, a car at 10 m/s along y was 5 m behind its place; the frame of then lies
    # 4 m behind, so that its places are 4 m larger. A box without a known velocity stands.
    boxes = torch.tensor([[1.0, 20, 0, 4, 2, 1.5, 0, 0, 10], [1, 20, 0, 4, 2, 1.5, 0, torch.nan, torch.nan]]).double()
    motion = torch.eye(4).double()
    motion[1, 3] = 4
    moved = carried_back(boxes, motion, 0.5)
    assert moved[:, :2].tolist() == [[1, 19], [1, 24]] and boxes[0, 1] == 20


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "val"], "val_dataloader: absent"),
        (["--scenes", "scene-0009"], "--scenes: the split has no scene 'scene-0009'; nearest: scene-0001"),
        (["--max-samples", "0"], "--max-samples: must be positive, not 0"),
        (["--epoch", "-1"], "--epoch: must not be negative"),
        (["--out", "/dev/null/x"], "--out: cannot be written to"),
    ],
)
def test_mistakes(config, tmp_path, options, said):
    with pytest.raises(InputError) as caught:
        main([config, "--out", str(tmp_path / "out"), *options])
    assert said in str(caught.value) and not (tmp_path / "out").exists()

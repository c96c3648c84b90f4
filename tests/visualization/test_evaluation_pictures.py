"""Pictures of validations: the same samples every time, under the same names, in whatever the visualizer writes to."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmengine.visualization import Visualizer

from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.engine.config import load_config
from bevstack.engine.evaluation_pictures import EvaluationPicturesHook
from bevstack.engine.visualize import build_dataset
from tests.datasets.tables import VERSION, build_root

CONFIG = """
default_scope = "bevstack"
test_dataloader = dict(dataset=dict(
    type="NuScenesBEVDataset", data_root={root!r}, version={version!r}, split="all",
    pipeline=[dict(type="LoadMultiViewImages"), dict(type="PackBEVInputs")],
))
sample_visualizer = dict(type="SampleVisualizer", camera_height_px=60)
"""


class Loader(list):
    """Batches of one sample of a dataset."""

    def __init__(self, dataset) -> None:
        super().__init__(range(len(dataset)))
        self.dataset = dataset


@pytest.fixture
def runner(tmp_path):
    root = build_root(tmp_path / "root")
    write_index(root, VERSION, maps=False, progress=lambda line: None)
    (tmp_path / "config.py").write_text(CONFIG.format(root=str(root), version=VERSION))
    cfg = load_config(tmp_path / "config.py")
    visualizer = Visualizer(
        name=str(tmp_path), vis_backends=[dict(type="LocalVisBackend")], save_dir=str(tmp_path / "vis")
    )
    return SimpleNamespace(cfg=cfg, val_dataloader=Loader(build_dataset(cfg, None)), visualizer=visualizer, iter=40)


def validate(hook: EvaluationPicturesHook, runner) -> None:
    for number in runner.val_dataloader:
        hook.after_val_iter(runner, number, None, [runner.val_dataloader.dataset[number]["data_samples"]])


def test_the_same_samples_of_each_validation(runner, tmp_path):
    # Expected: of seven samples the first, the middle and the last one, each with the step of its validation.
    hook = EvaluationPicturesHook(max_samples=3, max_width_px=300)
    validate(hook, runner)
    runner.iter = 80
    validate(hook, runner)
    names = sorted(path.name for path in tmp_path.rglob("vis_image/*.png"))
    samples = ("000000_scene-0001", "000003_scene-0001", "000006_scene-0003")
    assert names == [f"val_{sample}_{step}.png" for sample in samples for step in (40, 80)]


def test_a_dataset_without_images_is_passed_over(runner, tmp_path):
    runner.val_dataloader.dataset = SimpleNamespace()
    EvaluationPicturesHook().after_val_iter(runner, 0, None, [object()])
    assert not list(tmp_path.rglob("vis_image/*.png"))


def test_numbers_must_be_positive():
    with pytest.raises(ValueError, match="must be positive, not 0 and 1600"):
        EvaluationPicturesHook(max_samples=0)

"""The whole picture, its painters, and how a painter of one's own gets into it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from bevstack.geometry import BEVGrid
from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.visualization import CameraPainter, PanelPainter, SampleVisualizer, TruthPainter, draw_sample
from bevstack.visualization.painters import predicted_boxes
from bevstack.visualization.sample_visualizer import forward_bearing
from tests.visualization.scenes import view

VIEWS = [view(90, "CAM_FRONT"), view(145, "CAM_FRONT_LEFT"), view(-90, "CAM_BACK")]
OPTIONS = {"camera_height_px": 100}
MAGENTA = (255, 0, 254)


def sample(predicted=True, truth=True, scores=(0.9, 0.2), rasters=True):
    answer = BEVDataSample(
        metainfo={"token": "t", "scene_name": "scene-7", "timestamp_s": 1.5e9, "classes": ("car", "pedestrian")}
    )
    table = torch.tensor([[0, 12, -1, 4, 2, 2, 0.3, 0, 0], [5, 15, -1, 0.7, 0.7, 1.8, 0, 0, 0.0]])
    if truth:
        answer.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(table, box_dim=9), labels_3d=torch.tensor([0, -1])
        )
    if predicted:
        answer.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(table, box_dim=9),
            labels_3d=torch.tensor([0, 1]),
            scores_3d=torch.tensor(scores),
        )
    if rasters:
        grid = BEVGrid((10, 10))
        answer.gt_rasters = {"map": BEVRaster(torch.ones(1, 10, 10, dtype=torch.bool), ("walkway",), grid)}
        answer.pred_rasters = {"map": BEVRaster(torch.rand(1, 10, 10), ("walkway",), grid)}
    return answer


@VISUALIZERS.register_module()
class MagentaPainter(PanelPainter):
    """A user's own panel, drawn where it is named."""

    def paint(self, sample, window):
        return np.full((*window.shape, 3), MAGENTA, np.uint8)

    def legend(self, sample):
        return ["own thing"]


def test_many_panels_below_the_cameras_stand_in_rows():
    # Expected: five panels in rows of three and two, each a third of the cameras' width (and as high).
    one, five = (
        draw_sample(sample(), VIEWS, layout="tall", **{**OPTIONS, "painters": [TruthPainter() for _ in range(count)]})
        for count in (3, 5)
    )
    assert five.shape[1] == one.shape[1]
    row = five.shape[0] - one.shape[0]
    assert abs(3 * row - one.shape[1]) < 40


def test_wide_and_tall():
    # Expected: cameras 2 rows of 100 px; panels as high as both rows beside them, or below.
    wide, tall = (draw_sample(sample(), VIEWS, layout=layout, **OPTIONS) for layout in ("wide", "tall"))
    assert wide.dtype == np.uint8 and wide.shape[1] > 2 * 200 + 2 * 202 and wide.shape[0] < 300
    assert tall.shape[1] < 450 and tall.shape[0] > wide.shape[0] + 150
    with pytest.raises(ValueError, match="layout"):
        SampleVisualizer(layout="round")


def test_all_pictures_of_a_scene_have_one_size():
    # Expected: size depends on classes and layers alone, not on what one sample holds; a clip needs that.
    shapes = {draw_sample(sample(scores=s), VIEWS, **OPTIONS).shape for s in ((0.9, 0.9), (0.1, 0.1), (0.9, 0.0))}
    assert len(shapes) == 1


def test_truth_alone_is_drawn_before_there_is_a_model():
    # Expected: one panel less than with predictions, and the box is in the front camera.
    with_model, without = (draw_sample(sample(predicted=p, rasters=p), VIEWS, **OPTIONS) for p in (True, False))
    assert without.shape[1] == with_model.shape[1] - 212  # a panel of 2 x 100 + 2 px, and a gap of 10
    nothing = draw_sample(sample(predicted=False, rasters=False, truth=False), VIEWS, **OPTIONS)
    assert nothing.shape[1] == without.shape[1] - 212


def test_threshold_and_ignored_boxes():
    # Expected: score 0.2 is under the threshold; a true box with a negative label is no box of the classes.
    assert predicted_boxes(sample(), 0.3).names == ("car",)
    assert predicted_boxes(sample(), 0.1).names == ("pedestrian", "car")  # lowest score first: drawn below
    assert predicted_boxes(sample(predicted=False), 0.3) is None
    low, high = (draw_sample(sample(), VIEWS, score_thr=s, **OPTIONS) for s in (0.1, 0.3))
    assert (low != high).any()


def test_registered_painter_named_in_a_config_is_drawn():
    # Expected: a whole panel of its colour, 202 x 202 px, with no change in this package.
    config = {"type": "SampleVisualizer", "painters": [{"type": "TruthPainter"}, {"type": "MagentaPainter"}], **OPTIONS}
    picture = VISUALIZERS.build(config).draw(sample(), VIEWS)
    assert (picture == MAGENTA).all(-1).sum() == 202 * 202


@VISUALIZERS.register_module()
class LanePainter(PanelPainter):
    """A user's own panel, drawn where a sample has lanes."""

    fields, title = ("pred_lanes.points", "gt_lanes"), "lanes"

    def __init__(self, score_thr=0.5):
        self.score_thr = score_thr

    def paint(self, sample, window):
        return np.full((30, 60, 3), MAGENTA, np.uint8)


@VISUALIZERS.register_module()
class DotPainter(CameraPainter):
    """Something on the images."""

    fields = ("pred_lanes.dots",)

    def paint(self, sample, views, shown_height_px):
        assert shown_height_px == 100
        return [replace(view, image=np.full_like(view.image, MAGENTA)) for view in views]

    def legend(self, sample):
        return ["dot"]


def magenta(picture):
    return (np.abs(picture.astype(int) - MAGENTA).sum(-1) < 9).sum()


def test_registered_painters_draw_what_a_sample_has():
    # Expected: without being named, a panel of 60 x 30 px enlarged to the panel's height of 202 px, its title covering
    # a little, where the sample has one of the fields; on the cameras, three of 200 x 100 px, their names covering a
    # little; nothing where the parts of the field are others.
    plain, lanes = sample(), sample()
    lanes.pred_lanes = InstanceData(points=torch.zeros(1))
    assert magenta(draw_sample(plain, VIEWS, **OPTIONS)) == 0
    assert 0.9 * 404 * 202 < magenta(draw_sample(lanes, VIEWS, **OPTIONS)) < 404 * 202
    lanes.pred_lanes = InstanceData(dots=torch.zeros(1))
    assert 0.75 * 3 * 200 * 100 < magenta(draw_sample(lanes, VIEWS, **OPTIONS)) < 3 * 200 * 100
    assert magenta(draw_sample(lanes, VIEWS, painters=[{"type": "LanePainter"}, {"type": "DotPainter"}], **OPTIONS)) > 0
    assert magenta(draw_sample(lanes, VIEWS, painters=[{"type": "LanePainter"}], **OPTIONS)) == 0
    del lanes.pred_lanes
    lanes.set_field(1, "gt_lanes")
    assert magenta(draw_sample(lanes, VIEWS, **OPTIONS)) > 0.9 * 404 * 202


def test_which_painters_there_are():
    # Expected: without a list every one that has fields, the prediction first, then the ground truth; one that takes a
    # score gets the visualizer's, unless it has its own.
    kinds = [type(painter).__name__ for painter in SampleVisualizer().painters]
    assert kinds[:2] == ["PredictionPainter", "TruthPainter"] and "MagentaPainter" not in kinds
    own = {"BehaviourPainter", "ImageKeypointPainter", "PanopticPainter", "PosePainter", "ScenePainter", "TrackPainter"}
    assert own | {"LanePainter", "DotPainter"} <= set(kinds) and len(set(kinds)) == len(kinds)
    (default,) = (painter for painter in SampleVisualizer(score_thr=0.7).painters if isinstance(painter, LanePainter))
    assert default.score_thr == 0.7
    chosen = [{"type": "LanePainter"}, {"type": LanePainter, "score_thr": 0.1}, LanePainter(), TruthPainter()]
    assert [painter.score_thr for painter in SampleVisualizer(chosen, 0.7).painters[:3]] == [0.7, 0.1, 0.5]


def test_painter_that_paints_something_else_is_told():
    class Grey(PanelPainter):
        def paint(self, sample, window):
            return np.zeros((4, 4))

    with pytest.raises(TypeError, match=r"Grey.paint\(\) must return an \(H, W, 3\) uint8 array, not float64 \(4, 4\)"):
        SampleVisualizer([Grey()], **OPTIONS).draw(sample(), VIEWS)


@pytest.mark.parametrize(("bearing", "expected"), [(88, 90), (4, 0), (-92, -90)])
def test_forward_is_where_the_front_camera_looks(bearing, expected):
    views = [view(200, "CAM_LEFT"), view(bearing, "CAM_FRONT")]
    assert np.degrees(forward_bearing(views)) == pytest.approx(expected)
    assert np.degrees(forward_bearing(views[:1])) == pytest.approx(90)


def test_inputs_are_not_changed():
    value = sample()
    before = value.pred_instances_3d.bboxes_3d.tensor.clone()
    draw_sample(value, VIEWS, **OPTIONS)
    assert torch.equal(value.pred_instances_3d.bboxes_3d.tensor, before)
    assert (VIEWS[0].image == 128).all()

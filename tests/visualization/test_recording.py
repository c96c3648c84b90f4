"""The recording for the Rerun viewer, read back by Rerun's own reader."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVFeatures, BEVRaster
from bevstack.structures.boxes import lidar_boxes
from bevstack.structures.matches import DetectionMatches
from bevstack.visualization import recording
from bevstack.visualization.palette import TRUTH, color_of
from bevstack.visualization.recording import SceneRecording
from tests.visualization.scenes import view

pytest.importorskip("rerun", reason="the extra 'rerun' is not installed")
from rerun import dataframe

CLASSES = ("car", "pedestrian")
GRID = BEVGrid((4, 4), (-10.0, 10.0), (-10.0, 10.0))
# (label, x, y, z of the lower face, length, width, height, yaw, velocity), score
PREDICTED = [([0, 10, -1, 4, 2, 1.5, np.pi / 2, 0, 3], 0, 0.9), ([5, 0, -1, 1, 1, 2, 0, 0, 0], 1, 0.2)]
TRUE = [0.0, 10.5, -1, 4, 2, 1.5, 0, np.nan, np.nan]


def sample(place: int, scene: str = "scene-1") -> BEVDataSample:
    """The car drives 2 m along the global x axis a moment; it looks along it: its y axis is global x."""
    global_from_bev = np.eye(4)
    global_from_bev[:2, :2] = [[0, 1], [-1, 0]]
    global_from_bev[:3, 3] = 100 + 2 * place, 50, 0
    info = {"classes": CLASSES, "scene_name": scene, "token": f"t{place}", "timestamp_s": 1000 + place / 2}
    made = BEVDataSample(metainfo={**info, "global_from_bev": global_from_bev})
    boxes = PREDICTED if place != 1 else []
    made.pred_instances_3d = InstanceData(
        bboxes_3d=lidar_boxes(torch.tensor([row[0] for row in boxes]).reshape(-1, 9)),
        labels_3d=torch.tensor([row[1] for row in boxes], dtype=torch.long),
        scores_3d=torch.tensor([row[2] for row in boxes]),
        attribute_names=["vehicle.moving", ""][: len(boxes)],
        track_ids=torch.tensor([7, -1][: len(boxes)], dtype=torch.long),
    )
    made.gt_instances_3d = InstanceData(bboxes_3d=lidar_boxes(torch.tensor([TRUE])), labels_3d=torch.tensor([0]))
    trail = np.array([[102.0, 50, 0], [104, 50, 0]])
    made.set_field({7: trail} if place != 1 else {}, "track_trails")
    drivable = torch.zeros(1, *GRID.shape)
    drivable[0, :, 2:] = 1  # the half to the right of the car
    made.set_field({"map": BEVRaster(drivable, ("drivable_area",), GRID)}, "pred_rasters")
    features = torch.randn(1, 6, *GRID.shape, generator=torch.Generator().manual_seed(place))
    made.set_field(BEVFeatures(features, GRID), "bev_features")
    return made


def matches(number: int) -> DetectionMatches:
    distances = np.array([0.5, np.nan])[:number]
    found = np.array([0, -1])[:number]
    return DetectionMatches(found, distances, np.ones(number, bool), np.ones(1, bool))


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """Rows of the recording by entity and component, one a moment; and its file."""
    path = tmp_path_factory.mktemp("recording") / "clip.rrd"
    made = SceneRecording("a clip", score_thr=0.1, camera_width_px=200, window_px=100)
    for place in range(3):
        one = sample(place)
        made.add(one, [view(), view(-90, "CAM_BACK")], matches(len(one.pred_instances_3d)))
    assert made.write(path) == path.stat().st_size
    return dataframe.load_recording(path), path


def column(read, entity: str, component: str) -> list:
    """What an entity's component is, moment after moment; nothing of the rows before it was logged."""
    table = read[0].view(index="moment", contents=entity).select().read_all().to_pydict()
    return [value for value in table[f"{entity}:{component}"] if value is not None]


def test_a_moment_is_a_step_of_both_timelines(read):
    table = read[0].view(index="moment", contents="/world/car").select().read_all().to_pydict()
    assert table["moment"] == [0, 1, 2]
    assert [moment.timestamp() for moment in table["time"]] == [1000, 1000.5, 1001]
    assert read[0].application_id() == "bevstack" and read[0].recording_id() == "a clip"


def test_the_car_drives_through_the_world(read):
    # Expected: the world is the first moment's BEV frame; 2 m along global x are 2 m along its y axis.
    assert column(read, "/world/car", "Translation3D") == [[[0, 2 * place, 0]] for place in range(3)]
    for matrix in column(read, "/world/car", "TransformMat3x3"):
        np.testing.assert_allclose(matrix[0], np.eye(3).ravel(), atol=1e-6)


def test_boxes_stand_where_they_are(read):
    # Expected: centres half a height above the lower faces; a yaw of 90 degrees is the quaternion (0, 0, s, s) with
    # s = sin 45; no box at the second moment.
    place = "/world/car/boxes/predicted"
    assert column(read, place, "PoseTranslation3D") == [[[0, 10, -0.25], [5, 0, 0]], [], [[0, 10, -0.25], [5, 0, 0]]]
    assert column(read, place, "HalfSize3D")[0] == [[2, 1, 0.75], [0.5, 0.5, 1]]
    np.testing.assert_allclose(column(read, place, "PoseRotationQuat")[0], [[0, 0, 0.5**0.5, 0.5**0.5], [0, 0, 0, 1]])
    assert column(read, place, "Text")[0] == ["car 0.90", "pedestrian 0.20"]
    assert column(read, place + "/velocities", "Vector3D")[0] == [[0, 3, 0]]  # what stands still has none
    assert column(read, "/world/car/boxes/true", "PoseTranslation3D") == [[[0, 10.5, -0.25]]] * 3
    colors = [[int.from_bytes(bytes((*color, 255)))] for color in (TRUTH, color_of("car"))]
    assert column(read, "/world/car/boxes/true", "Color")[0] == colors[0]
    assert column(read, place, "Color")[0][:1] == colors[1]


def test_boxes_say_what_is_known_of_them(read):
    place = "/world/car/boxes/predicted"
    np.testing.assert_allclose(column(read, place, "score")[0], [0.9, 0.2])
    assert column(read, place, "speed_mps")[0] == [3, 0] and column(read, place, "score")[1] == []
    assert column(read, place, "attribute")[0] == ["vehicle.moving", None]
    assert column(read, place, "identity")[0] == ["7", None]
    found, lost = column(read, place, "distance_to_truth_m")[0]
    assert found == 0.5 and np.isnan(lost)


def test_cameras_are_pinholes_with_their_images(read):
    # Expected: images of 400 x 200 made half as large, so are their intrinsics (rows of three, column after column);
    # the front camera looks along y, its x axis to the right.
    place = "/world/car/cameras/CAM_FRONT"
    assert column(read, place, "PinholeProjection")[0] == [[100, 0, 0, 0, 100, 0, 100, 50, 1]]
    assert column(read, place, "Resolution")[0] == [[200, 100]]
    matrix = np.array(column(read, place, "TransformMat3x3")[0][0]).reshape(3, 3).T
    np.testing.assert_allclose(matrix @ [0, 0, 1], [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(matrix @ [1, 0, 0], [1, 0, 0], atol=1e-6)
    picture = cv2.imdecode(np.array(column(read, place, "Blob")[2][0], np.uint8), -1)
    assert picture.shape == (100, 200, 3) and np.abs(picture.astype(int) - 128).max() <= 1
    assert column(read, "/world/car/cameras/CAM_BACK", "Resolution")[0] == [[200, 100]]


def test_tracks_lie_still_in_the_world(read):
    # Expected: global (102, 50) is 2 m along the first moment's y axis; no identity at the second moment.
    assert column(read, "/world/tracks", "LineStrip3D") == [[[[0, 2, 0], [0, 4, 0]]], [], [[[0, 2, 0], [0, 4, 0]]]]
    assert column(read, "/world/tracks", "Text")[0] == ["7"]


def test_masks_and_features_from_above(read):
    # Expected: the mask covers x 0..10 m, so columns 50..60 of 100 px over 102.4 m; B_t has
    # 20 of 102.4 m, white around it; the ground lies at the lower faces.
    blobs = {name: column(read, f"/bev/{name}", "Blob")[0][0] for name in ("prediction", "B_t", "tracks")}
    pictures = {name: cv2.imdecode(np.array(blob, np.uint8), -1)[..., ::-1] for name, blob in blobs.items()}
    assert np.array_equal(pictures["prediction"][56, 53], pictures["prediction"][44, 53])
    assert not np.array_equal(pictures["prediction"][56, 53], pictures["prediction"][56, 46])
    painted = (pictures["B_t"] != 255).any(-1)
    rows, columns = np.nonzero(painted)
    np.testing.assert_allclose([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], [40, 60, 40, 60], atol=1)
    assert column(read, "/world/car/ground", "Position3D")[0][0] == pytest.approx([-51.2, -51.2, -1])
    texture = np.array(column(read, "/world/car/ground", "ImageBuffer")[0][0], np.uint8).reshape(100, 100, 3)
    assert np.array_equal(texture[56, 53], pictures["prediction"][56, 53])


def test_a_new_scene_begins_its_own_world(tmp_path):
    # Expected: the second scene's first sample is 6 m on, and at the origin of its world.
    made = SceneRecording("two", camera_width_px=200, window_px=50)
    for place, scene in ((0, "a"), (3, "b")):
        made.add(sample(place, scene), [view()])
    made.write(tmp_path / "two.rrd")
    read = dataframe.load_recording(tmp_path / "two.rrd"), None
    assert column(read, "/world/car", "Translation3D") == [[[0, 0, 0]]] * 2


def test_rerun_is_asked_for_before_any_work(monkeypatch):
    monkeypatch.setattr(recording, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="visualize: --rerun: needs Rerun: pip install 'bevstack\\[rerun\\]'"):
        recording.require_rerun()

"""The ROS 2 node of docs/examples on a stand-in for ROS of a few lines: what it makes of messages, what it sends."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from types import SimpleNamespace

import numpy as np
import pytest

from bevstack.runtime import Boxes, Prediction
from tests.test_install import ROOT

# The BEV frame of nuScenes (x right, y forward) in a car (x forward, y left), 1 m ahead and 2 m up.
EGO_FROM_BEV = [[0, 1, 0, 1], [-1, 0, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
AHEAD = [[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]]
CAMERAS = [{"name": "CAM_FRONT", "pixels_from_camera": [[100, 0, 2], [0, 100, 1], [0, 0, 1]], "ego_from_camera": AHEAD}]
CALIBRATION = {"ego_from_bev": EGO_FROM_BEV, "cameras": [*CAMERAS, {**CAMERAS[0], "name": "CAM_BACK"}]}


class Message(SimpleNamespace):
    """A message whose parts come to be when they are named."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, Message())
        return getattr(self, name)


class Node:
    """What the example asks of rclpy's node: parameters as given, publishers that keep what is published."""

    given: dict = {}

    def __init__(self, name):
        self.name, self.published = name, []

    def declare_parameter(self, name, default):
        return SimpleNamespace(value=self.given.get(name, default))

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(kind=kind, topic=topic, publish=self.published.append)


class Synchronizer:
    def __init__(self, topics, queue_size, slop):
        self.topics, self.slop = [topic.name for topic in topics], slop

    def registerCallback(self, callback):  # noqa: N802 - as message_filters has it
        self.callback = callback


class Model:
    """One box 10 m ahead; what it was given is noted, the memory counts the steps."""

    def __init__(self):
        self.calls = []

    def step(self, images, pixels_from_camera, camera_from_bev, motion=None, memory=None):
        self.calls.append(SimpleNamespace(**{k: v for k, v in locals().items() if k != "self"}))
        table = np.array([[0, 10, -2, 4, 2, 1.5, np.pi / 2, 0, 3], [5, 0, 0, 1, 1, 1, 0, 0, 0]], np.float32)
        boxes = Boxes(table, np.array([0.9, 0.1], np.float32), np.array([0, 1]), ("car", "pedestrian"))
        return Prediction({}, {"detection": boxes}), {"steps": len(self.calls)}


@pytest.fixture
def example(monkeypatch):
    """The module, with a stand-in for each package of ROS that it imports."""
    ros = {
        "rclpy": {}, "rclpy.node": {"Node": Node}, "nav_msgs.msg": {"Odometry": Message},
        "sensor_msgs.msg": {"Image": Message},
        "vision_msgs.msg": dict.fromkeys(("Detection3D", "Detection3DArray", "ObjectHypothesisWithPose"), Message),
        "message_filters": {
            "Subscriber": lambda node, kind, topic: SimpleNamespace(name=topic),
            "ApproximateTimeSynchronizer": Synchronizer,
        },
    }  # fmt: skip
    for name, content in ros.items():
        for part in (name.partition(".")[0], name):
            if part not in sys.modules or part == name:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        vars(sys.modules[name]).update(content)
    spec = importlib.util.spec_from_file_location("ros2_node", ROOT / "docs" / "examples" / "ros2_node.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pose(x: float, yaw: float = 0.0) -> Message:
    made = Message()
    made.position = SimpleNamespace(x=x, y=0.0, z=0.0)
    made.orientation = SimpleNamespace(x=0.0, y=0.0, z=np.sin(yaw / 2), w=np.cos(yaw / 2))
    return made


def test_a_pose_is_a_matrix(example):
    # Expected: a turn by 90 degrees to the left takes x to y; then 3 m along global x.
    np.testing.assert_allclose(example.matrix(pose(3, np.pi / 2)) @ [1, 0, 0, 1], [3, 1, 0, 1], atol=1e-12)


def test_images_are_rgb_whatever_the_rows_are_padded_to(example):
    # Expected: two pixels a row of eight bytes; bgr8 is turned round.
    rows = bytes([1, 2, 3, 4, 5, 6, 0, 0, 7, 8, 9, 10, 11, 12, 0, 0])
    message = Message(encoding="rgb8", data=rows, height=2, width=2, step=8)
    assert example.pixels(message).tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]]
    message.encoding = "bgr8"
    assert example.pixels(message)[0].tolist() == [[3, 2, 1], [6, 5, 4]]
    message.encoding = "mono8"
    with pytest.raises(ValueError, match="images are mono8"):
        example.pixels(message)


def test_memory_and_motion_along_a_drive(example):
    # Expected: 2 m ahead are 2 m along the BEV frame's y axis, so what is at the origin now was at y = 2 then; where
    # time goes back or jumps, a new stream begins.
    model = Model()
    stream = example.Stream(model, CALIBRATION)
    for x, seconds in ((0, 10.0), (2, 10.5), (4, 11.0), (6, 20.0), (8, 19.0)):
        stream.step([None, None], example.matrix(pose(x)), seconds)
    first, second, third, jumped, back = model.calls
    assert first.motion is None and first.memory is None
    np.testing.assert_allclose(second.motion.previous_from_current @ [0, 0, 0, 1], [0, 2, 0, 1], atol=1e-12)
    assert second.motion.seconds == 0.5 and second.memory == {"steps": 1} and third.memory == {"steps": 2}
    assert jumped.memory is None and jumped.motion is None and back.memory is None
    # The camera stands 0.5 m ahead of and 0.5 m below the BEV frame's origin; it looks along BEV y.
    np.testing.assert_allclose(first.camera_from_bev[0] @ [0, 10, 0, 1], [0, -0.5, 9.5, 1], atol=1e-12)


def test_a_moment_becomes_one_message(example, monkeypatch, tmp_path):
    # Expected: the car's middle is 10 m ahead of the BEV frame, 11 m of the car; its lower face lies at z = -2, so its
    # middle 0.75 m over the ground, 2 m below the BEV frame; it looks ahead. The weak box is left out.
    (tmp_path / "rig.json").write_text(json.dumps(CALIBRATION))
    monkeypatch.setattr(Node, "given", {"model": "demo.onnx", "calibration": str(tmp_path / "rig.json")})
    model = Model()
    monkeypatch.setattr(example, "load", lambda file: model if file == "demo.onnx" else None)
    node = example.BEVNode()
    assert node.together.topics == ["/odom", "/CAM_FRONT/image_raw", "/CAM_BACK/image_raw"]
    image = Message(encoding="rgb8", data=bytes(range(6)), height=1, width=2, step=6)
    image.header.stamp = Message(sec=12, nanosec=500_000_000)
    odometry = Message()
    odometry.pose.pose = pose(3)
    node.together.callback(odometry, image, image)
    assert [array.shape for array in model.calls[0].images] == [(1, 2, 3)] * 2 and node.stream.before[2] == 12.5
    (message,) = node.published
    assert message.header.frame_id == "base_link" and message.header.stamp.sec == 12
    (found,) = message.detections
    center, size = found.bbox.center, found.bbox.size
    assert (found.results[0].hypothesis.class_id, found.results[0].hypothesis.score) == ("car", pytest.approx(0.9))
    assert (center.position.x, center.position.y, center.position.z) == pytest.approx((11, 0, 0.75), abs=1e-6)
    assert (center.orientation.z, center.orientation.w) == pytest.approx((0, 1), abs=1e-6)
    assert (size.x, size.y, size.z) == (4, 2, 1.5)

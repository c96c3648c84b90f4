"""A ROS 2 node around an exported model: cameras and odometry in, boxes out. Needs no torch.

    python ros2_node.py --ros-args -p model:=demo.onnx -p calibration:=rig.json

Parameters: ``model``, a file of tools/export.py; ``calibration``, a rig.json (docs/inference.md), whose cameras have
the topics ``/<name>/image_raw``, in the order that the model learned; ``odometry`` (``/odom``);
``min_score`` (0.3); ``frame`` (``base_link``), the car's own, which boxes are published in; ``slop`` (0.05), seconds
that the images of one moment may lie apart. Images are rgb8 or bgr8, undistorted.
"""

import json

import message_filters
import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import Image
from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

from bevstack.runtime import Motion, load

LONGEST_GAP_S = 2.0


class Stream:
    """A model led along a drive: it keeps the memory and the pose of the moment before. Knows nothing of ROS.

    Args:
        model: of ``bevstack.runtime.load``.
        calibration: what a rig.json holds.
    """

    def __init__(self, model, calibration: dict) -> None:
        self.model = model
        self.names = [camera["name"] for camera in calibration["cameras"]]
        self.ego_from_bev = np.array(calibration["ego_from_bev"], float)
        cameras = calibration["cameras"]
        self.pixels_from_camera = np.array([camera["pixels_from_camera"] for camera in cameras], float)
        ego_from_camera = np.array([camera["ego_from_camera"] for camera in cameras], float)
        self.camera_from_bev = np.linalg.inv(ego_from_camera) @ self.ego_from_bev
        self.before = None  # memory, global_from_bev, seconds

    def step(self, images: list, global_from_ego: np.ndarray, seconds: float) -> list[dict]:
        """Boxes of one moment in the car's frame: name, score, center_m (of the middle), size_m, yaw.

        A new stream begins where time goes back or makes a jump.

        Args:
            images: (H, W, 3) uint8 RGB in the order of ``names``, None for a camera without one.
            global_from_ego: (4, 4) metres. seconds: when it was.
        """
        global_from_bev, motion, memory = global_from_ego @ self.ego_from_bev, None, None
        if self.before is not None and 0 < seconds - self.before[2] <= LONGEST_GAP_S:
            memory, global_from_previous, then = self.before
            motion = Motion(np.linalg.inv(global_from_previous) @ global_from_bev, seconds - then)
        prediction, memory = self.model.step(images, self.pixels_from_camera, self.camera_from_bev, motion, memory)
        self.before = memory, global_from_bev, seconds
        return [box for boxes in prediction.boxes.values() for box in self.in_ego(boxes)]

    def in_ego(self, boxes) -> list[dict]:
        """Boxes of the runtime, which are in the BEV frame with z at the bottom, as the car sees them."""
        turn, shift = self.ego_from_bev[:3, :3], self.ego_from_bev[:3, 3]
        found = []
        for row, score, name in zip(boxes.boxes.astype(float), boxes.scores, boxes.names, strict=True):
            middle = row[:3] + [0, 0, row[5] / 2]
            ahead = turn @ [np.cos(row[6]), np.sin(row[6]), 0]
            center, yaw = turn @ middle + shift, float(np.arctan2(ahead[1], ahead[0]))
            found.append(dict(name=name, score=float(score), center_m=center, size_m=row[3:6], yaw=yaw))
        return found


def pixels(message: Image) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an image message."""
    if message.encoding not in ("rgb8", "bgr8"):
        raise ValueError(f"images are {message.encoding}; expected rgb8 or bgr8")
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    image = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
    return image if message.encoding == "rgb8" else image[..., ::-1]


def matrix(pose) -> np.ndarray:
    """(4, 4) of a pose message."""
    x, y, z, w = (getattr(pose.orientation, axis) for axis in "xyzw")
    made = np.eye(4)
    made[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    made[:3, 3] = pose.position.x, pose.position.y, pose.position.z
    return made


class BEVNode(Node):
    """Subscribes to the cameras of a rig and to odometry, publishes ``detections`` (vision_msgs/Detection3DArray)."""

    def __init__(self) -> None:
        super().__init__("bevstack")
        defaults = dict(model="", calibration="", odometry="/odom", min_score=0.3, frame="base_link", slop=0.05)
        given = {name: self.declare_parameter(name, value).value for name, value in defaults.items()}
        self.min_score, self.frame = given["min_score"], given["frame"]
        with open(given["calibration"]) as file:
            self.stream = Stream(load(given["model"]), json.load(file))
        self.publisher = self.create_publisher(Detection3DArray, "detections", 1)
        topics = [message_filters.Subscriber(self, Odometry, given["odometry"])]
        topics += [message_filters.Subscriber(self, Image, f"/{name}/image_raw") for name in self.stream.names]
        self.together = message_filters.ApproximateTimeSynchronizer(topics, queue_size=10, slop=given["slop"])
        self.together.registerCallback(self.on_moment)

    def on_moment(self, odometry: Odometry, *images: Image) -> None:
        """One moment: odometry and the images of all cameras."""
        stamp = images[0].header.stamp
        seconds = stamp.sec + 1e-9 * stamp.nanosec
        boxes = self.stream.step([pixels(image) for image in images], matrix(odometry.pose.pose), seconds)
        message = Detection3DArray()
        message.header.stamp, message.header.frame_id = stamp, self.frame
        message.detections = [self.detection(box, message.header) for box in boxes if box["score"] >= self.min_score]
        self.publisher.publish(message)

    @staticmethod
    def detection(box: dict, header) -> Detection3D:
        """A box as its message."""
        made, result = Detection3D(), ObjectHypothesisWithPose()
        made.header = header
        result.hypothesis.class_id, result.hypothesis.score = box["name"], box["score"]
        made.results = [result]
        place, turn = made.bbox.center.position, made.bbox.center.orientation
        place.x, place.y, place.z = map(float, box["center_m"])
        turn.z, turn.w = float(np.sin(box["yaw"] / 2)), float(np.cos(box["yaw"] / 2))
        made.bbox.size.x, made.bbox.size.y, made.bbox.size.z = map(float, box["size_m"])
        return made


def main() -> None:
    """Run the node until it is stopped."""
    rclpy.init()
    node = BEVNode()
    try:
        rclpy.spin(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()

"""Structures in, images out: cameras with boxes, the scene from above, whole samples, scenes as GIF or MP4."""

from bevstack.visualization.attention import CameraAttentionPainter, PastAttentionPainter
from bevstack.visualization.behaviour import BehaviourPainter
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.cameras import CameraView, draw_camera, draw_cameras
from bevstack.visualization.features import FeaturesPainter
from bevstack.visualization.painters import CameraPainter, Painter, PanelPainter, PredictionPainter, TruthPainter
from bevstack.visualization.panoptic import PanopticPainter, draw_panoptic
from bevstack.visualization.poses import ImageKeypointPainter, PosePainter
from bevstack.visualization.sample_visualizer import SampleVisualizer, draw_sample
from bevstack.visualization.scene import ScenePainter
from bevstack.visualization.tracks import TrackPainter

__all__ = [
    "BEVWindow",
    "BehaviourPainter",
    "CameraAttentionPainter",
    "CameraPainter",
    "CameraView",
    "DrawnBoxes",
    "FeaturesPainter",
    "ImageKeypointPainter",
    "Painter",
    "PanelPainter",
    "PanopticPainter",
    "PastAttentionPainter",
    "PosePainter",
    "PredictionPainter",
    "SampleVisualizer",
    "ScenePainter",
    "TrackPainter",
    "TruthPainter",
    "draw_bev",
    "draw_camera",
    "draw_cameras",
    "draw_panoptic",
    "draw_sample",
]

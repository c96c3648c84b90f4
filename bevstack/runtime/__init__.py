"""An exported model without torch: ``pip install numpy onnxruntime`` and this folder run it.

    model = load("model.onnx")
    prediction, memory = model.step(images, pixels_from_camera, camera_from_bev)
    prediction, memory = model.step(images, pixels_from_camera, camera_from_bev, Motion(previous_from_current), memory)
    prediction.boxes["detection"].boxes          # (R, 9) metres of the BEV frame

Nothing here imports any other part of bevstack but its one kind of error.
"""

from bevstack.runtime.boxes import Boxes
from bevstack.runtime.session import ExportedModel, Motion, Prediction, load

__all__ = ["Boxes", "ExportedModel", "Motion", "Prediction", "load"]

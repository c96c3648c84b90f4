"""bevstack: multi-camera bird's-eye-view perception on the OpenMMLab stack.

Importing the package imports no other. It only makes sure that mmcv, mmdet, mmdet3d and timm can be imported later
where compiled parts of mmcv or torchvision are absent (:mod:`bevstack.interop.standins`).
"""

import importlib
from typing import TYPE_CHECKING

from bevstack.interop.standins import install_standins

if TYPE_CHECKING:
    from bevstack.engine.camera_health import CameraChecks, CameraHealth
    from bevstack.engine.inference import Predictor
    from bevstack.engine.models import load_model
    from bevstack.engine.prediction import BEVPrediction
    from bevstack.structures.moment import Moment, Motion, Rig, Sweeps

__version__ = "0.1.0"
__all__ = [
    "BEVPrediction",
    "CameraChecks",
    "CameraHealth",
    "Moment",
    "Motion",
    "Predictor",
    "Rig",
    "Sweeps",
    "load_model",
]

_PLACES = {
    "BEVPrediction": "bevstack.engine.prediction",
    "CameraChecks": "bevstack.engine.camera_health",
    "CameraHealth": "bevstack.engine.camera_health",
    "Moment": "bevstack.structures.moment",
    "Motion": "bevstack.structures.moment",
    "Predictor": "bevstack.engine.inference",
    "Rig": "bevstack.structures.moment",
    "Sweeps": "bevstack.structures.moment",
    "load_model": "bevstack.engine.models",
}
"""Where the names of the front door live: imported when they are asked for."""

install_standins()


def __getattr__(name: str) -> object:
    """A name of the front door (docs/inference.md); torch and all the rest are imported with the first one."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})

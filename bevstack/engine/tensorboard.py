"""Scalars and pictures of a run for TensorBoard, where it is installed."""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.config import Config
from mmengine.visualization import TensorboardVisBackend

from bevstack.registry import VISBACKENDS


@VISBACKENDS.register_module()
class TensorboardBackend(TensorboardVisBackend):
    """mmengine's, which opens no file before there is a scalar or a picture; the config lies beside it as a file."""

    def add_config(self, config: Config, **kwargs) -> None:
        """Leave the config to ``LocalVisBackend``."""


def installed() -> bool:
    """Whether TensorBoard's writer can be imported."""
    return find_spec("tensorboard") is not None

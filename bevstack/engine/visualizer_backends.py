"""Where scalars and pictures of a run go beside its files: TensorBoard where it is there, MLflow where it is named."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.visualization import MLflowVisBackend, TensorboardVisBackend

from bevstack.registry import VISBACKENDS


@VISBACKENDS.register_module()
class TensorboardBackend(TensorboardVisBackend):
    """mmengine's, which opens no file before there is a scalar or a picture; the config lies beside it as a file."""

    def add_config(self, config: Config, **kwargs) -> None:
        """Leave the config to ``LocalVisBackend``."""


@VISBACKENDS.register_module()
class MLflowBackend(MLflowVisBackend):
    """mmengine's, whose pictures have names that MLflow takes: ``pictures/<name>_<step>.png``.

    The config is the artifact ``config.py``; of its keys none becomes a parameter unless it is named.

    Args:
        save_dir: where files go without a ``tracking_uri``.
        tracked_config_keys: top keys of the config that become parameters.
        settings: as mmengine's: ``tracking_uri``, ``exp_name``, ``run_name``, ``tags``, ``params`` and others.
    """

    def __init__(self, save_dir: str, tracked_config_keys: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(save_dir, tracked_config_keys=list(tracked_config_keys), **settings)

    def add_image(self, name: str, image: np.ndarray, step: int = 0, **kwargs: Any) -> None:
        """Keep an (H, W, 3) uint8 RGB picture of a step."""
        super().add_image(f"pictures/{name}_{step}.png", image, step)


def tensorboard_installed() -> bool:
    """Whether TensorBoard's writer can be imported."""
    return find_spec("tensorboard") is not None

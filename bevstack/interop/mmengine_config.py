"""mmengine's pure-Python configs in a virtual environment.

mmengine makes every import in a config lazy but those of the standard library, which it recognises by the folder of the
running interpreter: in a virtual environment (and for frozen modules, Python 3.11 and later) ``import os`` becomes a
lazy object, and ``os.environ`` in a config fails. Python itself knows which modules are its own.
"""

from __future__ import annotations

import sys

from mmengine.config import config as _config
from mmengine.config import utils as _utils

_original = _utils._is_builtin_module


def _is_builtin_module(module_name: str) -> bool:
    return module_name.split(".")[0] in sys.stdlib_module_names or _original(module_name)


def import_standard_library_eagerly() -> None:
    """Let configs import and use the standard library, wherever Python lives. Idempotent."""
    for module in (_utils, _config):
        if hasattr(module, "_is_builtin_module"):
            module._is_builtin_module = _is_builtin_module

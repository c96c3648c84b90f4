"""mmengine's configs: imports in a virtual environment, and text without a formatter.

mmengine makes every import in a config lazy but those of the standard library, which it recognises by the folder of the
running interpreter: in a virtual environment (and for frozen modules, Python 3.11 and later) ``import os`` becomes a
lazy object, and ``os.environ`` in a config fails. Python itself knows which modules are its own.

Whenever a run starts, logs its config or saves a checkpoint, mmengine lays out the config's text by yapf, which takes a
second or more each time. The text that goes into it is the same program, one entry a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.config import config as _config
from mmengine.config import utils as _utils

_original = _utils._is_builtin_module


def _is_builtin_module(module_name: str) -> bool:
    return module_name.split(".")[0] in sys.stdlib_module_names or _original(module_name)


@contextmanager
def eager_standard_library() -> Iterator[None]:
    """While the block runs, configs that are read may import and use the standard library, wherever Python lives.

    mmengine's own function is put back afterwards: configs that others read in this process are read as ever.
    """
    changed = [module for module in (_utils, _config) if hasattr(module, "_is_builtin_module")]
    before = [module._is_builtin_module for module in changed]
    for module in changed:
        module._is_builtin_module = _is_builtin_module
    try:
        yield
    finally:
        for module, function in zip(changed, before, strict=True):
            module._is_builtin_module = function


def write_without_formatter(cfg: Config) -> Config:
    """Let ``cfg.pretty_text`` and ``cfg.dump()`` give the text as it is; the same config.

    ``Config.fromfile`` takes ``format_python_code=False`` and forgets it where a file has no ``read_base``.
    """
    object.__setattr__(cfg, "_format_python_code", False)
    return cfg

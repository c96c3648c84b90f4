"""Stand-ins for compiled parts that are absent: ``mmcv._ext`` and torchvision's operator schemas.

mmcv-lite has no ``mmcv._ext``; without it ``mmcv.ops``, and with it most of mmdet and mmdet3d, cannot be imported.
torchvision built for another torch cannot register ``torchvision::nms``; without it torchvision, and with it timm,
cannot be imported. Both are put in place only where the compiled part is missing, and nowhere else.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_LIBRARIES: list[object] = []


def _missing_op(name: str):
    def missing(*args, **kwargs):
        raise RuntimeError(
            f"mmcv operator '{name}' needs compiled mmcv: pip uninstall mmcv-lite && pip install 'bevstack[mmcv]'"
        )

    missing.__name__ = name
    return missing


class _MissingExtension(ModuleType):
    """A module that has every operator mmcv asks for; each raises one clear line when it is called."""

    is_standin = True

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing_op(name)


class _StandinFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Answers for ``mmcv._ext`` after every other finder has failed to find the compiled one."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "mmcv._ext":
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        return _MissingExtension(spec.name)

    def exec_module(self, module):
        return None


def compiled_mmcv_present() -> bool:
    """Whether the installed mmcv holds its compiled extension (looked up on disk, nothing is imported)."""
    spec = importlib.util.find_spec("mmcv")
    if spec is None or not spec.submodule_search_locations:
        return False
    return any(next(Path(place).glob("_ext*.so"), None) for place in spec.submodule_search_locations)


def _torchvision_extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True  # nothing installed: nothing to stand in for
    library = next(Path(spec.submodule_search_locations[0]).glob("_C*.so"), None)
    if library is None:
        return False
    import torch

    try:
        torch.ops.load_library(str(library))
    except OSError:
        return False
    return True


def _torch_is_cpu_build() -> bool:
    import torch

    return torch.version.cuda is None and getattr(torch.version, "hip", None) is None


def _declare_torchvision_schemas() -> None:
    import torch

    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


def install_standins() -> None:
    """Put every needed stand-in in place. Idempotent; does nothing where the compiled parts are there."""
    if not any(isinstance(finder, _StandinFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandinFinder())
    if importlib.util.find_spec("torch") is None:
        return  # an installation in the making; the doctor says so
    if "torchvision" in sys.modules or _LIBRARIES or not _torch_is_cpu_build():
        return
    if not _torchvision_extension_loads():
        _declare_torchvision_schemas()

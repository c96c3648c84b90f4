"""Stand-ins for compiled parts that are absent: ``mmcv._ext`` and torchvision's operator schemas.

mmcv-lite has no ``mmcv._ext``; without it ``mmcv.ops``, and with it most of mmdet and mmdet3d, cannot be imported.
torchvision built for another torch cannot register ``torchvision::nms``; without it torchvision, and with it timm,
cannot be imported. Both are put in place only where the compiled part is missing, and only when the package that needs
it is imported: two import finders wait for that, so that installing them costs nothing and imports nothing.
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


class _ExtensionFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
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


class _TorchvisionFinder(importlib.abc.MetaPathFinder):
    """Asks the other finders for torchvision; what they find declares missing schemas before it runs."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return None
        others = (finder for finder in list(sys.meta_path) if finder is not self)
        found = (finder.find_spec(fullname, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _TorchvisionLoader(spec.loader)
        return spec


class _TorchvisionLoader(importlib.abc.Loader):
    """torchvision's own loader, which declares missing schemas first and then takes its place again."""

    def __init__(self, loader) -> None:
        self._loader = loader

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        _declare_missing_schemas(Path(module.__file__).parent)
        self._loader.exec_module(module)


def _declare_missing_schemas(folder: Path) -> None:
    """Declare ``torchvision::nms`` and ``qnms`` where the compiled part in ``folder`` is absent or cannot be loaded.

    Left alone: torch built for a GPU, whose torchvision is built for one, too.
    """
    import torch  # only here: importing bevstack installs the finders and must import nothing

    if _LIBRARIES or torch.version.cuda is not None or getattr(torch.version, "hip", None) is not None:
        return
    extension = next(folder.glob("_C*.so"), None)
    if extension is not None:
        try:
            torch.ops.load_library(str(extension))
            return
        except OSError:  # built for another torch
            pass
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARIES.append(library)


def torchvision_stand_in_serves() -> bool:
    """Whether torchvision was imported with the stand-in's schemas."""
    return bool(_LIBRARIES)


def install_standins() -> None:
    """Let every needed stand-in come into place when its package is imported. Idempotent; imports nothing."""
    if not any(isinstance(finder, _TorchvisionFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchvisionFinder())  # first, because it asks all others
        sys.meta_path.append(_ExtensionFinder())  # last: the compiled extension comes before it

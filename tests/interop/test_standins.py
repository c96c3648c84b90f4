"""What importing bevstack does and does not do, each in a process of its own (a module is imported once only).

Expected: the packages that the stand-ins exist for can be imported afterwards, whatever came first.
"""

from __future__ import annotations

import sys

import pytest

from bevstack.interop.standins import compiled_mmcv_present
from tests.processes import run_captured

HEAVY = ("torch", "torchvision", "numpy", "mmcv", "mmdet", "mmdet3d", "mmengine", "timm", "cv2", "scipy")
# torchvision before bevstack: where its compiled part does not fit, somebody else has declared what it asks for
TORCHVISION_ALONE = """
try:
    import torchvision
except RuntimeError:
    import torch
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
"""


def run(*lines: str) -> str:
    """What a script of these lines prints."""
    done = run_captured([sys.executable, "-c", "\n".join(lines)], timeout_s=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_bevstack_imports_no_other_package() -> None:
    assert run(f"import sys, bevstack; print([name for name in {HEAVY} if name in sys.modules])") == "[]\n"


def test_looking_for_torchvision_imports_nothing() -> None:
    """What ``find_spec`` is for: packages ask by it whether another one is there."""
    seen = "print(importlib.util.find_spec('torchvision') is None, 'torch' in sys.modules)"
    assert run("import sys, bevstack, importlib.util", seen) == "False False\n"


@pytest.mark.parametrize(
    "order",
    [
        "import bevstack, timm, torchvision, mmcv.ops, mmdet.models, mmdet3d.models",
        "import torch, bevstack; import mmdet3d.models, mmdet.models, mmcv.ops, torchvision, timm",
        f"{TORCHVISION_ALONE}\nimport bevstack, mmcv.ops, timm, bevstack.models",
    ],
    ids=["bevstack first", "torch first", "torchvision first"],
)
def test_what_needs_a_stand_in_can_be_imported(order) -> None:
    seen = "print(type(torchvision.__loader__).__name__, hasattr(torch.ops.torchvision, 'nms'))"
    assert run(order, "import torch, torchvision", seen) == "SourceFileLoader True\n"


def test_a_failed_import_of_torchvision_can_be_mended() -> None:
    """As in a notebook: timm, an error, bevstack, timm once more."""
    attempt = ("try:", "    import timm", "except RuntimeError:", "    pass")
    assert run(*attempt, "import bevstack, timm, torchvision.ops", "print('fine')") == "fine\n"


@pytest.mark.skipif(compiled_mmcv_present(), reason="compiled mmcv has the operators")
def test_a_missing_operator_says_what_to_install() -> None:
    from mmcv.ops import nms
    from torch import ones

    with pytest.raises(RuntimeError, match=r"'nms' needs compiled mmcv: .* pip install 'bevstack\[mmcv\]'"):
        nms(ones(1, 4), ones(1), 0.5)

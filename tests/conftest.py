"""One thread a process: tests run side by side, and sums of floats keep their order.

``BEVSTACK_TEST_THREADS=2`` runs them with two: what torch computes in bfloat16 depends on it, faults included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

THREADS = int(os.environ.get("BEVSTACK_TEST_THREADS", "1"))
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ[_name] = str(THREADS)
os.environ.setdefault("MPLBACKEND", "Agg")

import cv2  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import bevstack  # noqa: E402, F401 - its stand-ins must be there before a test module imports mmdet3d

torch.set_num_threads(THREADS)
cv2.setNumThreads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` need a CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request) -> Iterator[int]:
    """The test runs twice, with so many threads of torch, whatever the session has."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)

"""The doctor's findings, on pretended sets of packages (expected: the known conflicts between them)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bevstack import doctor
from bevstack.doctor import BAD, NOTE, OK, examine, report

MEASURED = {
    "torch": "2.13.0+cpu",
    "numpy": "1.26.4",
    "mmcv-lite": "2.1.0",
    "mmengine": "0.10.7",
    "mmdet": "3.3.0",
    "mmdet3d": "1.4.0",
    "nuscenes-devkit": "1.2.0",
    "opencv-python": "4.11.0.86",
    "opencv-python-headless": "4.11.0.86",
    "timm": "1.0.31",
}


@pytest.fixture
def pretend(monkeypatch):
    """Replace the installed versions by the measured set and some changes; None: not installed."""

    def change(**changes: str | None) -> None:
        versions = MEASURED | {name.replace("_", "-"): version for name, version in changes.items()}
        monkeypatch.setattr(doctor, "version_of", lambda package: versions.get(package) or "")

    return change


def finding(subject: str, root) -> doctor.Finding:
    return next(entry for entry in examine(root) if entry.subject == subject)


def test_measured_set_is_usable(pretend, tmp_path) -> None:
    pretend()
    lines: list[str] = []
    assert report(examine(tmp_path), lines.append) == 0
    assert lines[-1] == "bevstack is usable" and len(lines) < 45, "one screen"


@pytest.mark.parametrize(
    ("changes", "subject", "advice"),
    [
        ({"mmcv_lite": None}, "mmcv", "mmcv-lite"),
        ({"mmcv": "2.1.0"}, "mmcv", "pip uninstall mmcv mmcv-lite"),
        ({"mmcv_lite": "2.2.0"}, "mmcv", "mmcv-lite>=2.1,<2.2"),
        ({"mmcv_lite": None, "mmcv": "2.2.1"}, "mmcv", "mmcv>=2.1,<2.2"),
        ({"mmdet": None}, "mmdet", "pip install"),
        ({"mmdet3d": "1.5.0"}, "mmdet3d", "mmdet3d>=1.4,<1.5"),
        ({"numpy": "2.1.0"}, "numpy", "numpy>=1.23,<2"),
        ({"opencv_python_headless": "4.12.0.88"}, "opencv", "opencv-python==4.12.0.88"),
        ({"opencv_python": "5.0.0", "opencv_python_headless": "5.0.0"}, "opencv", "4.11.0.86"),
        ({"torch": None}, "torch", "pip install"),
        ({"torch": "2.4.1"}, "torch", "torch>=2.6"),
        ({"onedl_mmengine": "0.10.8"}, "onedl-mmengine", "pip uninstall onedl-mmengine mmengine"),
    ],
)
def test_conflicts_are_named_with_what_to_do(pretend, tmp_path, changes, subject, advice) -> None:
    pretend(**changes)
    found = finding(subject, tmp_path)
    assert found.state == BAD and advice in found.advice
    assert report(examine(tmp_path), lambda line: None) == 1


def test_missing_extras_are_no_fault(pretend, tmp_path) -> None:
    pretend(timm=None)
    assert finding("timm", tmp_path).state == NOTE and ".[timm]" in finding("timm", tmp_path).advice


def test_data_roots(pretend, tmp_path) -> None:
    pretend()
    tables = tmp_path / "data" / "nuscenes" / "v1.0-mini"
    tables.mkdir(parents=True)
    (tables / "sample.json").write_text("[]")
    assert "tools/create_data.py nuscenes --root" in finding("data", tmp_path).advice
    index = tmp_path / "data" / "nuscenes" / "bevstack-index" / "v1.0-mini"
    index.mkdir(parents=True)
    (index / "index.json").write_text("{}")
    assert finding("data", tmp_path).state == OK


def test_other_pythons_get_one_clear_line(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    found = finding("python", tmp_path)
    assert found.state == BAD and "3.10 to 3.12" in found.advice


def test_command() -> None:
    """The real environment of these tests is usable."""
    done = subprocess.run([sys.executable, "-m", "bevstack.doctor"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("bevstack is usable\n"), done.stdout + done.stderr

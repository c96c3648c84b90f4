"""M21 to M32: image and lidar files that are wrong, or merely unusual, through the tools, by the contract.

Each case spoils one image of the tiny root after it was indexed; ``tools/visualize.py --ground-truth`` reads them all.
Images that are unusual and right are read: the pixels expected are those of the plain file, as OpenCV decodes them.
"""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from tables import IMAGE_SIZE_PX, VERSION, build_root

from bevstack.images import MOST_PIXELS, read_image, stored_size_px
from tests.reliability.contract import call_tool, refused, write_config

IMAGE = "samples/CAM_FRONT/s1k0.jpg"


@pytest.fixture(scope="module")
def indexed_root(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("indexed") / "root")
    assert call_tool("create_data", "nuscenes", "--root", root, "--version", VERSION) == 0
    return root


@pytest.fixture
def root(indexed_root, tmp_path) -> Path:
    return Path(shutil.copytree(indexed_root, tmp_path / "root"))


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*IMAGE_SIZE_PX, 3), dtype=np.uint8)


def png_of(width: int, height: int) -> bytes:
    """A small PNG file whose header says that it is so large; its pixels would all be black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BROKEN = {
    "M21 missing": (lambda path: path.unlink(), "image", "No such file"),
    "M22 empty": (lambda path: path.write_bytes(b""), "image", "empty"),
    "M23 truncated": (lambda path: path.write_bytes(path.read_bytes()[:-20]), "image", "cut off"),
    "M24 not an image": (lambda path: path.write_bytes(b"<html>404</html>"), "image", "not an image"),
    "M25 another size": (lambda path: cv2.imwrite(str(path), picture()[:20]), "size", "64x20, the table says 64x36"),
    "M29 over 64 megapixels": (lambda path: path.write_bytes(png_of(10_000, 7_000)), "size", "64 megapixels"),
    "M30 a folder": (as_folder, "image", "directory"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken(root, tmp_path, capfd, case) -> None:
    breaks, field, reason = BROKEN[case]
    breaks(root / IMAGE)
    config = write_config(tmp_path / "config.py", root, VERSION)
    arguments = ("--ground-truth", config, "--out", tmp_path / "out", "--scenes", "scene-0003")
    line = refused(capfd, tmp_path, "visualize", *arguments)
    assert line[0] == str(root / IMAGE) and line[1] == field and reason in line[2], line


def grey(path: Path) -> np.ndarray:
    cv2.imwrite(str(path), picture()[..., 0])
    return np.repeat(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[..., None], 3, axis=2)


def cmyk(path: Path) -> np.ndarray:
    Image.fromarray(np.full((*IMAGE_SIZE_PX, 3), (200, 100, 50), np.uint8)).convert("CMYK").save(path, "jpeg")
    return np.full((*IMAGE_SIZE_PX, 3), (200, 100, 50), np.uint8)


def turned(path: Path) -> np.ndarray:
    plain = picture()
    image, exif = Image.fromarray(plain), Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees to show": intrinsics belong to the pixels as they are stored
    image.save(path, "jpeg", exif=exif, quality=95)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(
    "make", [grey, cmyk, turned], ids=["M26 grey", "M27 cmyk", "M28 turned by exif"]
)
def test_unusual_images_are_read(root, tmp_path, make) -> None:
    expected = make(root / IMAGE)
    found = read_image(root / IMAGE, IMAGE_SIZE_PX)
    assert np.abs(found.astype(int) - expected).max() <= 3, "but for the rounding of two JPEG decoders"
    config = write_config(tmp_path / "config.py", root, VERSION)
    arguments = ("--ground-truth", config, "--out", tmp_path / "out", "--scenes", "scene-0003", "--format", "none")
    assert call_tool("visualize", *arguments) == 0


@pytest.mark.parametrize("spoil", [lambda p: p.write_bytes(b"\0" * 81), lambda p: p.unlink()], ids=["M31", "M32"])
def test_the_lidars_points_are_never_read(root, tmp_path, spoil) -> None:
    """Points that are no whole number of points, and none at all: cameras alone are read, so both work.

    ``tools/check_data.py`` tells of them (tests/datasets/test_data_checks.py).
    """
    spoil(root / "samples/LIDAR_TOP/s1k0.pcd.bin")
    config = write_config(tmp_path / "config.py", root, VERSION)
    arguments = ("--ground-truth", config, "--out", tmp_path / "out", "--scenes", "scene-0003", "--format", "none")
    assert call_tool("visualize", *arguments) == 0


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("flags", [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)], ids=["plain", "progressive"])
def test_sizes_are_those_of_the_header(tmp_path, extension, flags) -> None:
    path = tmp_path / f"a{extension}"
    cv2.imwrite(str(path), picture(), list(flags) if extension == ".jpg" else [])
    assert stored_size_px(path.read_bytes()) == IMAGE_SIZE_PX
    assert stored_size_px(path.read_bytes()[:10]) is None and stored_size_px(b"") is None
    assert stored_size_px(png_of(8000, 8000)) == (8000, 8000) and MOST_PIXELS == 8000 * 8000

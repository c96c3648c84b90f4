"""Pictures and clips on disk."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from bevstack.errors import InputError
from bevstack.images import read_image
from bevstack.visualization.files import write_clip, write_png
from bevstack.visualization.palette import CLASS_COLORS


def pictures(folder, number=3, size=(60, 100)):
    """Noise, the more of the car's colour on it the later the picture."""
    rng = np.random.default_rng(0)
    paths = []
    for index in range(number):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        image[:, : 20 * (index + 1)] = CLASS_COLORS["car"]
        paths.append(folder / f"{index}.png")
        write_png(paths[-1], image)
    return paths


def test_png_round_trip(tmp_path):
    # Expected: PNG loses nothing; RGB stays RGB.
    image = np.random.default_rng(0).integers(0, 255, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "deep" / "a.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "deep" / "a.png"), image)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "a.png")), image)


def test_gif(tmp_path):
    # Expected: one frame a picture, 1000 / 4 ms each, endless, our flat colours unchanged by the palette.
    write_clip(tmp_path / "a.gif", pictures(tmp_path), fps=4)
    with Image.open(tmp_path / "a.gif") as clip:
        assert (clip.n_frames, clip.size, clip.info["duration"], clip.info["loop"]) == (3, (100, 60), 250, 0)
        for index in range(3):
            clip.seek(index)
            frame = np.asarray(clip.convert("RGB"))
            assert (frame[:, : 20 * (index + 1)] == CLASS_COLORS["car"]).all()


def test_mp4(tmp_path):
    # Expected: one frame a picture, in order; lossy, so only the flat colour is compared, loosely.
    write_clip(tmp_path / "a.mp4", pictures(tmp_path), fps=4)
    clip = cv2.VideoCapture(str(tmp_path / "a.mp4"))
    assert clip.get(cv2.CAP_PROP_FPS) == 4 and clip.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    for _ in range(3):
        good, frame = clip.read()
        assert good and np.abs(frame[30, 5, ::-1].astype(int) - CLASS_COLORS["car"]).max() < 40


def test_large_pictures_are_scaled_and_odd_ones_made_even(tmp_path):
    write_clip(tmp_path / "a.gif", pictures(tmp_path, size=(61, 201)), fps=2, max_width_px=101)
    with Image.open(tmp_path / "a.gif") as clip:
        assert clip.size == (100, 30) or clip.size == (102, 30)


def test_pictures_of_another_size_are_fitted(tmp_path):
    paths = pictures(tmp_path, 1) + pictures(tmp_path / "other", 1, (30, 100))
    write_clip(tmp_path / "a.gif", paths, fps=2)
    with Image.open(tmp_path / "a.gif") as clip:
        assert clip.n_frames == 2 and clip.size == (100, 60)


def test_failures_leave_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 3), np.uint8))
    with pytest.raises(InputError, match="formats gif, mp4"):
        write_clip(tmp_path / "a.avi", [tmp_path / "a.png"], 4)
    with pytest.raises(InputError, match="at least one picture"):
        write_clip(tmp_path / "a.gif", [], 4)
    first = pictures(tmp_path, 1)
    with pytest.raises(InputError, match="No such file"):
        write_clip(tmp_path / "a.gif", [*first, tmp_path / "missing.png"], 4)
    with pytest.raises(InputError, match="the file is empty"):
        read_image(tmp_path / "file")
    assert sorted(os.listdir(tmp_path)) == ["0.png", "file"]

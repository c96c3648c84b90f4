"""The panel of what kind of scene it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.structures import BEVDataSample
from bevstack.visualization import BEVWindow, ScenePainter


@pytest.mark.parametrize(("truth", "color"), [("day", (38, 139, 80)), ("night", (200, 60, 50))])
def test_bars(truth, color):
    # A bar of the right answer is green, of the wrong one red, and as long as its probability of 200 pixels.
    sample = BEVDataSample()
    assert not ScenePainter().draws(sample)
    sample.set_field({"time": {"names": ("day", "night"), "probabilities": torch.tensor([0.75, 0.25])}}, "pred_scene")
    sample.gt_scene = {"time": truth}
    assert ScenePainter().draws(sample)
    picture = ScenePainter().paint(sample, BEVWindow())
    assert picture.shape == (640, 640, 3) and picture.dtype == np.uint8
    assert (picture == color).all(-1)[:, 345:546].sum(1).max() == pytest.approx(0.75 * 200, abs=2)

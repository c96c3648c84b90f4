"""What the scene head adds to the contract of heads: pooled inputs, weighted classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bevstack.errors import InputError
from bevstack.models.heads import SceneHead
from tests.models.scenes import labels_of
from tests.models.test_heads import BEV_GRID, CHANNELS, bev_of

PLACES = ("boston", "queenstown", "moon")


def build(**settings) -> SceneHead:
    torch.manual_seed(0)
    return SceneHead(CHANNELS, BEV_GRID, **{"dropout": 0.0, "image_channels": CHANNELS, **settings})


def test_it_reads_means():
    # Expected: cells of B_t, cameras and pixels may change places without any effect; their means may not change.
    head, bev = build().eval(), bev_of()
    images, step = bev.image_features, torch.arange(CHANNELS).view(-1, 1, 1)
    turned = replace(bev, features=bev.features.flip(-1), image_features=tuple(f.flip(1, 3) for f in images))
    louder = replace(bev, image_features=tuple(f + step for f in images))
    for task, logits in head(bev).items():
        torch.testing.assert_close(head(turned)[task], logits)
        assert not torch.allclose(head(louder)[task], logits, atol=1e-3)
    with pytest.raises(ValueError, match="there are no image features; set it to 0"):
        head(replace(bev, image_features=()))


def test_loss_is_weighted_cross_entropy():
    # Closed form on given logits; the second sample's weather is not known.
    head = build(tasks=dict(weather=("dry", "rain"), location=PLACES), class_weights=dict(location=(1.0, 4.0, 1.0)))
    raw = {"weather": torch.randn(2, 2), "location": torch.randn(2, 3)}
    samples = labels_of(BEV_GRID, [1, 1])
    del samples[1].gt_scene["weather"]
    losses = head.loss(raw, samples)
    assert losses["loss_weather"].item() == pytest.approx(F.cross_entropy(raw["weather"][:1], torch.tensor([1])).item())
    each = F.cross_entropy(raw["location"], torch.tensor([0, 1]), reduction="none")
    assert losses["loss_location"].item() == pytest.approx(((each[0] + 4 * each[1]) / 2).item())
    for sample in samples:
        sample.gt_scene = {}
    raw["weather"].requires_grad_()
    unknown = head.loss(raw, samples)["loss_weather"]
    unknown.backward()
    assert unknown == 0 and (raw["weather"].grad == 0).all()


def test_it_learns_what_the_means_tell():
    # Two kinds of B_t that differ in one channel's mean: after some steps both are told apart.
    head, bev, samples = build(tasks=dict(time=("day", "night"))), bev_of(), labels_of(BEV_GRID, [1, 1])
    bev.features[1, 0] += 1.0
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(bev), samples)["loss_time"].backward()
        optimizer.step()
    predicted = [fields["pred_scene"]["time"] for fields in head.predict(head(bev), samples)]
    assert [entry["names"][entry["probabilities"].argmax()] for entry in predicted] == ["day", "night"]
    assert all(entry["probabilities"].sum().item() == pytest.approx(1) for entry in predicted)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: build(tasks=dict(time=("day",))), ValueError, "'time' needs at least two different classes"),
        (lambda: build(class_weights=dict(tyme=(1, 2))), ValueError, "'tyme' has 2; the tasks have {'time': 2"),
        (lambda: build(tasks=dict(location=("rome", "oslo"))).loss({"location": torch.zeros(1, 2)}, labels_of(
            BEV_GRID, [1])), InputError, "'boston' is none of the head's classes ['rome', 'oslo']: name it"),
    ],
    ids=["one-class", "weights", "unknown"],
)  # fmt: skip
def test_mistakes_are_told(make, error, said):
    with pytest.raises(error) as caught:
        make()
    assert said in str(caught.value)


def test_truth_that_is_not_there():
    sample = labels_of(BEV_GRID, [1])[0]
    del sample.gt_scene
    with pytest.raises(InputError, match="train pipeline: gt_scene: not there: add LoadSceneLabels"):
        build().loss({task: torch.zeros(1, 2) for task in ("time", "weather")}, [sample])

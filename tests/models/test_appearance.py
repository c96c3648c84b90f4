"""The appearance head: where it samples, what it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.heads import AppearanceHead, LabelledBoxes
from bevstack.models.heads.appearance import sampling_points
from bevstack.structures import AlignedHistory, BEVDataSample, BEVFeatures

GRID = BEVGrid(shape=(24, 32), x_range_m=(-32, 32), y_range_m=(-24, 24))
CHANNELS = 12


def painted(grid: BEVGrid, centers: torch.Tensor, looks: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    """(C, Y, X): each object's looks as a blob of 2.5 m on noisy ground."""
    distance = torch.cdist(grid.cell_centers().flatten(0, 1), centers)
    blobs = torch.exp(-0.5 * (distance / 2.5).square())
    return ((blobs @ looks).t() + ground.flatten(1)).unflatten(1, grid.shape)


def moment(seed: int, objects: int = 6, mixed: torch.Tensor | None = None):
    """A sample of objects that each look their own way, in two frames between which they move.

    What the encoder made shows what B_t shows through another linear mixture of channels (``mixed``), as an encoder's
    output differs from what the neck makes of it. Both frames lie in the current BEV frame, as a history does.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    places = torch.randperm(30, generator=generator)[:objects]
    centers = torch.stack([(places % 6) * 9.0 - 22.5, (places // 6) * 8.0 - 16.0], dim=1)
    past = centers + random(objects, 2)
    looks = random(objects, CHANNELS) * 2
    fields = [painted(GRID, c, looks, 0.3 * random(CHANNELS, *GRID.shape)) for c in (centers, past)]
    mixture = torch.eye(CHANNELS) if mixed is None else mixed
    encoded = torch.stack([torch.einsum("dc,cyx->dyx", mixture, field) for field in fields])
    boxes = torch.zeros(objects, 9)
    boxes[:, :2], boxes[:, 3:6], boxes[:, 6] = centers, torch.tensor([4.0, 2.0, 1.5]), random(objects)
    return fields, encoded, boxes, torch.stack([centers, past], dim=1)


def batch_of(seeds, mixed=None):
    moments = [moment(seed, mixed=mixed) for seed in seeds]
    encoded = torch.stack([m[1] for m in moments])
    count = len(moments)
    history = AlignedHistory(encoded[:, 1:], GRID, torch.ones(count, 1, dtype=torch.bool), torch.full((count, 1), 0.5))
    bev = BEVFeatures(torch.stack([m[0][0] for m in moments]), GRID, BEVFeatures(encoded[:, 0], GRID), history)
    return bev, [sample_of(m[2], m[3]) for m in moments]


def sample_of(boxes, past_centers=None) -> BEVDataSample:
    from mmdet3d.structures import LiDARInstance3DBoxes

    instances = dict(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.zeros(len(boxes), dtype=torch.int64)
    )
    sample = BEVDataSample()
    sample.pred_instances_3d = InstanceData(**instances, scores_3d=torch.ones(len(boxes)))
    if past_centers is not None:
        instances["past_centers"] = past_centers
    sample.gt_instances_3d = InstanceData(**instances)
    return sample


def found_again(head: AppearanceHead, seeds) -> float:
    """Share of objects whose nearest embedding in the frame before is their own; both from B by the object branch."""
    hits = []
    for seed in seeds:
        fields, _, boxes, past_centers = moment(seed)
        before = boxes.clone()
        before[:, :2] = past_centers[:, 1]
        tables = [LabelledBoxes(table, torch.zeros(len(table)).long()) for table in (boxes, before)]
        encoded = {"field": head.object_branch["field"](torch.stack(fields))}
        now, then = (answer["embeddings"] for answer in head.describe(encoded, tables))
        hits.append((now @ then.t()).argmax(1) == torch.arange(len(boxes)))
    return torch.cat(hits).float().mean().item()


@pytest.mark.parametrize("with_history", [True, False])
def test_it_learns_to_tell_objects_apart(with_history):
    # Six objects a sample on unseen samples (chance is 1/6). The history is another mixture of channels than B_t, so
    # that the two branches cannot be one. Expected: nearly every object finds itself in the frame before.
    torch.manual_seed(0)
    mixed = torch.randn(CHANNELS, CHANNELS) / math.sqrt(CHANNELS)
    options = dict(history_channels=CHANNELS, use_history=with_history)
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16, channels=24, **options)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    first = None
    for step in range(40):
        bev, samples = batch_of(range(4 * step, 4 * step + 4), mixed)
        losses = head.loss(head.encode(bev), samples)
        loss = sum(losses.values())
        first = losses if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(losses) == ({"loss_views", "loss_now", "loss_before"} if with_history else {"loss_views"})
    assert all(losses[name] < 0.4 * first[name] for name in losses)
    head.eval()
    assert found_again(head, range(1000, 1010)) > 0.9


def test_the_past_is_sampled_where_the_object_was():
    # Closed form: with identical branches, no mixture and the identity in both, B_t and the history show an object the
    # same, so contrast with the true past place is far below that with a wrong past place.
    torch.manual_seed(0)
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16, channels=24, history_channels=CHANNELS).eval()
    head.history_branch.load_state_dict(head.object_branch.state_dict())
    bev, samples = batch_of(range(4))
    right = head.loss(head.encode(bev), samples)["loss_before"]
    for sample in samples:
        past = sample.gt_instances_3d.past_centers.clone()
        past[:, 1] = past[:, 1].roll(1, 0)
        sample.gt_instances_3d.past_centers = past
    wrong = head.loss(head.encode(bev), samples)["loss_before"]
    assert right < 0.6 * wrong


def test_an_unknown_past_counts_nothing():
    # NaN, a frame that is not valid, and no frame at all: the loss against the frame before is exactly zero, the rest
    # is as it was.
    torch.manual_seed(0)
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16, channels=24, history_channels=CHANNELS).eval()
    bev, samples = batch_of(range(2))
    full = head.loss(head.encode(bev), samples)
    assert full["loss_before"] > 0
    invalid = replace(bev.history, valid=torch.tensor([[False]] * 2))
    cases = [head.loss(head.encode(replace(bev, history=history)), samples) for history in (invalid, None)]
    for sample in samples:
        sample.gt_instances_3d.past_centers[:, 1] = torch.nan
    cases.append(head.loss(head.encode(bev), samples))
    for losses in cases:
        assert losses["loss_before"] == 0
        torch.testing.assert_close(losses["loss_now"], full["loss_now"])
        torch.testing.assert_close(losses["loss_views"], full["loss_views"])


def test_predictions_keep_what_is_there():
    torch.manual_seed(0)
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16, use_history=False).eval()
    bev, samples = batch_of(range(2))
    samples[0].pred_instances_3d.attribute_names = ["vehicle.parked"] * 6
    for sample, fields in zip(samples, head.predict(head.encode(bev), samples), strict=True):
        instances = fields["pred_instances_3d"]
        assert instances.embeddings.shape == (6, 16) and "embeddings" not in sample.pred_instances_3d
        torch.testing.assert_close(instances.embeddings.norm(dim=1), torch.ones(6))
        torch.testing.assert_close(instances.bboxes_3d.tensor, sample.pred_instances_3d.bboxes_3d.tensor)
        assert ("attribute_names" in instances) == (sample is samples[0])


def test_sampling_points_turn_with_the_box():
    # Closed form: a 4 x 2 box at (10, 5) that looks along +y; its front corners lie at y = 7.
    places = sampling_points(torch.tensor([[10.0, 5, 0, 4, 2, 1.5, math.pi / 2, 0, 0]]))[0]
    torch.testing.assert_close(places[0], torch.tensor([10.0, 5.0]))
    torch.testing.assert_close(places[5], torch.tensor([9.0, 7.0]))
    torch.testing.assert_close(places.mean(0), torch.tensor([10.0, 5.0]))


def test_what_is_missing_is_said():
    bev, samples = batch_of(range(1))
    head = AppearanceHead(CHANNELS, GRID, history_channels=CHANNELS)
    del samples[0].gt_instances_3d.past_centers
    with pytest.raises(InputError, match=r"past_centers: not there for 2 frames: add LoadPastCenters\(num_frames=2\)"):
        head.loss(head.encode(bev), samples)
    with pytest.raises(ValueError, match="history_channels: not given; .* the encoder's, or set use_history=False"):
        AppearanceHead(CHANNELS, GRID)

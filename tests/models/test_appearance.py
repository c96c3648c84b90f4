"""The appearance head: where it samples, what it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.geometry.transforms import invert_rigid
from bevstack.models.heads import AppearanceHead
from bevstack.models.heads.appearance import sampled_places
from bevstack.structures import BEVDataSample, BEVFeatures, BEVMemory

GRID = BEVGrid(shape=(24, 32), x_range_m=(-32, 32), y_range_m=(-24, 24))
CHANNELS = 12


def turned(yaw: float, x: float, y: float) -> torch.Tensor:
    matrix = torch.eye(4)
    matrix[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    matrix[:2, 3] = torch.tensor([x, y])
    return matrix


def painted(grid: BEVGrid, centers: torch.Tensor, looks: torch.Tensor, ground: torch.Tensor) -> torch.Tensor:
    """(C, Y, X): each object's looks as a blob of 2.5 m on noisy ground."""
    distance = torch.cdist(grid.cell_centers().flatten(0, 1), centers)
    blobs = torch.exp(-0.5 * (distance / 2.5).square())
    return ((blobs @ looks).t() + ground.flatten(1)).unflatten(1, grid.shape)


def moment(seed: int, objects: int = 6, mixed: torch.Tensor | None = None):
    """A sample of objects that each look their own way, in two frames between which the car drives and turns.

    The history shows what B_t shows through another linear mixture of channels (``mixed``), as an encoder's output
    differs from what the neck makes of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    places = torch.randperm(30, generator=generator)[:objects]
    centers = torch.stack([(places % 6) * 9.0 - 22.5, (places // 6) * 8.0 - 16.0], dim=1)
    past = centers + random(objects, 2)
    looks = random(objects, CHANNELS) * 2
    newest_from_frame = torch.stack([torch.eye(4), turned(0.3, 1.0, -2.0)])
    in_frame = [centers, (invert_rigid(newest_from_frame[1]) @ torch.cat(
        [past, torch.zeros(objects, 1), torch.ones(objects, 1)], dim=1).t()).t()[:, :2]]  # fmt: skip
    fields = [painted(GRID, c, looks, 0.3 * random(CHANNELS, *GRID.shape)) for c in in_frame]
    mixture = torch.eye(CHANNELS) if mixed is None else mixed
    history = torch.stack([torch.einsum("dc,cyx->dyx", mixture, field) for field in fields])
    boxes = torch.zeros(objects, 9)
    boxes[:, :2], boxes[:, 3:6], boxes[:, 6] = centers, torch.tensor([4.0, 2.0, 1.5]), random(objects)
    return fields, history, newest_from_frame, boxes, torch.stack([centers, past], dim=1)


def batch_of(seeds, mixed=None):
    moments = [moment(seed, mixed=mixed) for seed in seeds]
    memory = BEVMemory(
        torch.stack([m[1] for m in moments]), torch.stack([m[2] for m in moments]),
        torch.ones(len(moments), 2, dtype=torch.bool),
    )  # fmt: skip
    bev = BEVFeatures(torch.stack([m[0][0] for m in moments]), GRID, memory)
    return bev, [sample_of(m[3], m[4]) for m in moments], moments


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
        fields, _, newest_from_frame, boxes, past_centers = moment(seed)
        before = boxes.clone()
        homogeneous = torch.cat([past_centers[:, 1], torch.zeros(len(boxes), 1), torch.ones(len(boxes), 1)], dim=1)
        before[:, :2] = (invert_rigid(newest_from_frame[1]) @ homogeneous.t()).t()[:, :2]
        before[:, 6] -= 0.3
        history = BEVMemory(torch.stack(fields)[None], newest_from_frame[None], torch.ones(1, 2, dtype=torch.bool))
        embeddings = []
        for field, table in zip(fields, (boxes, before), strict=True):
            bev = BEVFeatures(field[None], GRID, history)
            (answer,) = head.predict(head(bev), [sample_of(table)])
            embeddings.append(answer["pred_instances_3d"].embeddings)
        hits.append((embeddings[0] @ embeddings[1].t()).argmax(1) == torch.arange(len(boxes)))
    return torch.cat(hits).float().mean().item()


@pytest.mark.parametrize("with_history", [True, False])
def test_it_learns_to_tell_objects_apart(with_history):
    # Six objects a sample on unseen samples (chance is 1/6). The history is another mixture of channels than B_t, so
    # that the two branches cannot be one. Expected: nearly every object finds itself in the frame before.
    torch.manual_seed(0)
    mixed = torch.randn(CHANNELS, CHANNELS) / math.sqrt(CHANNELS)
    options = dict(history_channels=CHANNELS) if with_history else {}
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16, channels=24, **options)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    first = None
    for step in range(40):
        bev, samples, _ = batch_of(range(4 * step, 4 * step + 4), mixed)
        losses = head.loss(head(bev), samples)
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
    head.memory.load_state_dict(head.object.state_dict())
    bev, samples, _ = batch_of(range(4))
    right = head.loss(head(bev), samples)["loss_before"]
    for sample in samples:
        past = sample.gt_instances_3d.past_centers.clone()
        past[:, 1] = past[:, 1].roll(1, 0)
        sample.gt_instances_3d.past_centers = past
    wrong = head.loss(head(bev), samples)["loss_before"]
    assert right < 0.6 * wrong


def test_an_unknown_past_counts_nothing():
    # NaN, a frame that is not valid, and no frame at all: the loss against the frame before is exactly zero, the rest
    # is as it was.
    torch.manual_seed(0)
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16, channels=24, history_channels=CHANNELS).eval()
    bev, samples, _ = batch_of(range(2))
    full = head.loss(head(bev), samples)
    assert full["loss_before"] > 0
    invalid = replace(bev.history, valid=torch.tensor([[True, False]] * 2))
    short = BEVMemory(*(part[:, :1] for part in (bev.history.features, bev.history.newest_from_frame, invalid.valid)))
    cases = [head.loss(head(replace(bev, history=history)), samples) for history in (invalid, short)]
    for sample in samples:
        sample.gt_instances_3d.past_centers[:, 1] = torch.nan
    cases.append(head.loss(head(bev), samples))
    for losses in cases:
        assert losses["loss_before"] == 0
        torch.testing.assert_close(losses["loss_now"], full["loss_now"])
        torch.testing.assert_close(losses["loss_views"], full["loss_views"])


def test_predictions_keep_what_is_there():
    torch.manual_seed(0)
    head = AppearanceHead(CHANNELS, GRID, embedding_channels=16).eval()
    bev, samples, _ = batch_of(range(2))
    samples[0].pred_instances_3d.attribute_names = ["vehicle.parked"] * 6
    for sample, fields in zip(samples, head.predict(head(bev), samples), strict=True):
        instances = fields["pred_instances_3d"]
        assert instances.embeddings.shape == (6, 16) and "embeddings" not in sample.pred_instances_3d
        torch.testing.assert_close(instances.embeddings.norm(dim=1), torch.ones(6))
        torch.testing.assert_close(instances.bboxes_3d.tensor, sample.pred_instances_3d.bboxes_3d.tensor)
        assert ("attribute_names" in instances) == (sample is samples[0])


def test_sampled_places_turn_with_the_box():
    # Closed form: a 4 x 2 box at (10, 5) that looks along +y; its front corners lie at y = 7.
    places = sampled_places(torch.tensor([[10.0, 5, 0, 4, 2, 1.5, math.pi / 2, 0, 0]]))[0]
    torch.testing.assert_close(places[0], torch.tensor([10.0, 5.0]))
    torch.testing.assert_close(places[5], torch.tensor([9.0, 7.0]))
    torch.testing.assert_close(places.mean(0), torch.tensor([10.0, 5.0]))


def test_what_is_missing_is_said():
    bev, samples, _ = batch_of(range(1))
    head = AppearanceHead(CHANNELS, GRID, history_channels=CHANNELS)
    del samples[0].gt_instances_3d.past_centers
    with pytest.raises(InputError, match=r"past_centers: not there for 2 frames: add LoadPastCenters\(num_frames=2\)"):
        head.loss(head(bev), samples)
    finer = AppearanceHead(CHANNELS, BEVGrid(shape=(48, 64)), history_channels=CHANNELS)
    with pytest.raises(ValueError, match="history has .24, 32. cells, the grid .48, 64.; set history_grid"):
        finer.loss(finer(bev), samples)

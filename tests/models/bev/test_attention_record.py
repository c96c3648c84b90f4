"""What is recorded of attention is what the attention did: its samples, summed by hand, give its answer."""

import pytest
import torch
from torch.nn.functional import grid_sample

from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.bev.attention_record import AttentionRecord
from tests.models.bev.test_encoder import GRID, random_history
from tests.models.scenes import two_samples


class Model(torch.nn.Module):
    """As much of a BEVPerception as is listened to: one attention head, one level of features."""

    def __init__(self, heads=1, temporal_points=2):
        super().__init__()
        torch.manual_seed(0)
        sizes = dict(channels=16, num_layers=2, num_heads=heads, num_points=4, num_heights=2, feed_forward_channels=32)
        self.encoder = BEVFormerEncoder(
            grid=GRID, num_cameras=3, num_levels=1, dropout=0.0, temporal_points=temporal_points, **sizes
        ).eval()
        for parameter in self.encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        self.bev_neck = self.temporal_fusion = None
        self.outputs = {}
        for name in ("spatial", "temporal"):
            if (module := getattr(self.encoder.layers[-1], name)) is not None:
                module.register_forward_hook(
                    lambda m, args, out, name=name: self.outputs.update({name: (m, args, out)})
                )


def stepped(history=True, **options):
    model, frame = Model(**options), two_samples()
    record = AttentionRecord(model)
    with torch.no_grad():
        past = random_history(frame.motion) if history else None
        bev = model.encoder([torch.randn(2, 3, 16, 8, 16)], frame, past)
    return model, record, frame, bev


def sampled(maps, places):
    """(..., C) of value maps (M, C, H, W) at fractions (M, P, 2), bilinear, zero outside."""
    return grid_sample(maps, 2 * places.unsqueeze(1) - 1, align_corners=False)[:, :, 0].transpose(1, 2)


POINTS = [(-11, -7), (0.5, 5), (11, 15), (3, 2), (-4, 8)]


def cells_of(points):
    column, line = GRID.cells_from_metres(torch.tensor(points, dtype=torch.float32)).floor().long().unbind(-1)
    return line * GRID.shape[1] + column


@pytest.mark.parametrize("row", [0, 1])
def test_samples_in_the_cameras_give_the_attentions_answer(row):
    # Expected: the sum over cameras and samples of weight times bilinear value, through the output's projection.
    model, record, frame, _ = stepped()
    places = record.places(row, POINTS)
    module, (_, tokens, ((height, width),), _), out = model.outputs["spatial"]
    with torch.no_grad():
        maps = module.value_proj(tokens).transpose(1, 2).unflatten(2, (height, width)).unflatten(0, (2, 3))[row]
        rows, columns = frame.rig.padded_size_px
        seen = 0
        for k, cell in enumerate(cells_of(POINTS).tolist()):
            total = torch.zeros(16)
            for slot, camera in enumerate(places.cameras[k].tolist()):
                if camera < 0:
                    assert not places.image_weights[k, slot].any()
                    continue
                seen += 1
                matrix = frame.rig.pixels_from_camera[row, camera]
                pixels = torch.nn.functional.pad(places.rays[k, slot], (0, 1), value=1.0) @ matrix.T
                fractions = pixels[:, :2] / torch.tensor([columns, rows])
                values = sampled(maps[camera : camera + 1], fractions[None])[0]
                total += (places.image_weights[k, slot, :, None] * values).sum(0)
            torch.testing.assert_close(module.output_proj(total), out[row, cell], atol=2e-4, rtol=1e-3)
    assert seen >= 3  # the points are looked at by cameras
    sums = places.image_weights.sum((1, 2))
    torch.testing.assert_close(sums, (places.cameras >= 0).any(1).float())
    torch.testing.assert_close(places.cells, GRID.cell_centers().flatten(0, 1)[cells_of(POINTS)])


@pytest.mark.parametrize("row", [0, 1])
def test_samples_in_the_past_give_the_attentions_answer(row):
    # Expected: the sum over both BEVs and their samples, which lie in metres around the cell.
    model, record, _, _ = stepped()
    places = record.places(row, POINTS)
    module, (_, context, shape), out = model.outputs["temporal"]
    low = torch.tensor([GRID.x_range_m[0], GRID.y_range_m[0]])
    with torch.no_grad():
        pair = torch.stack([context.previous[row], context.initial[row]])
        maps = module.value_proj(pair).transpose(1, 2).unflatten(2, shape)
        for k, cell in enumerate(cells_of(POINTS).tolist()):
            fractions = (places.past[k] - low) / torch.tensor(GRID.size_m)
            total = (places.past_weights[k].unsqueeze(-1) * sampled(maps, fractions)).sum((0, 1))
            torch.testing.assert_close(module.output_proj(total), out[row, cell], atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(places.past_weights.sum((1, 2)), torch.ones(len(POINTS)))


def test_weights_are_means_over_heads():
    _, record, _, _ = stepped(heads=4)
    places = record.places(0, POINTS)
    assert places.rays.shape[2] == 4 * 4 and places.past.shape[1:3] == (2, 4 * 2)  # heads x points
    torch.testing.assert_close(places.past_weights.sum((1, 2)), torch.ones(len(POINTS)))


@pytest.mark.parametrize("options", [dict(history=False), dict(temporal_points=0)])
def test_without_history_nothing_is_looked_back_at(options):
    _, record, _, _ = stepped(**options)
    assert record.places(0, POINTS).past is None


def test_b_t_is_kept_and_hooks_go():
    # Expected: the encoder's own answer, since nothing comes after it; once closed, the next step leaves no trace.
    model, record, frame, bev = stepped()
    assert torch.equal(record.bev.features, bev.features)
    record.close()
    with torch.no_grad():
        again = model.encoder([torch.randn(2, 3, 16, 8, 16)], frame, None)
    assert not torch.equal(again.features, bev.features) and torch.equal(record.bev.features, bev.features)


def test_places_outside_the_grid_are_moved_to_its_rim():
    _, record, _, _ = stepped()
    centers = GRID.cell_centers()
    torch.testing.assert_close(record.places(0, [(99, -99)]).cells[0], centers[0, -1])

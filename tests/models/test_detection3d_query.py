"""The query-based head: invariants, closed forms, and torch's own attention as a judge."""

import math

import pytest
import torch
from mmengine.structures import InstanceData
from torch import nn

from bevstack.geometry import BEVGrid
from bevstack.geometry.box_code import encode_boxes
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.models.layers.attention import DeformableCrossAttention, MultiHeadSelfAttention
from bevstack.models.layers.positional_encoding import LearnedPositionalEncoding
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures

GRID = BEVGrid((6, 10), (-20.0, 30.0), (-15.0, 15.0), (-3.0, 3.0))
CLASSES = ("car", "bus", "pedestrian")


def _head(num_layers=2, **changes):
    torch.manual_seed(0)
    decoder = dict(num_layers=num_layers, num_heads=4, feed_forward_channels=24, dropout=0.0)
    sizes = dict(in_channels=16, num_queries=7, decoder=decoder)
    return QueryDetectionHead(**{**sizes, "grid": GRID, "classes": CLASSES, **changes})


def _bev(batch=2, seed=1, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    return BEVFeatures(torch.randn(batch, 16, *grid.shape, generator=generator), grid)


def _sample(boxes, labels):
    from mmdet3d.structures import LiDARInstance3DBoxes

    sample = BEVDataSample()
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 9)
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9), labels_3d=torch.tensor(labels, dtype=torch.long)
    )
    return sample


BOXES = [[3.0, 4.0, -1.0, 4.0, 2.0, 1.5, 0.3, 1.0, 0.0], [-9.0, 2.0, -0.5, 0.7, 0.6, 1.7, -2.0, 0.0, 1.0]]


def _total(losses):
    return sum(value for key, value in losses.items() if "loss" in key)


def test_shapes_and_layout_of_the_raw_output():
    raw = _head()(_bev(3))
    assert raw["logits"].shape == (2, 3, 7, 3) and raw["boxes"].shape == (2, 3, 7, 10)
    for axis, limits in ((0, GRID.x_range_m), (1, GRID.y_range_m), (4, GRID.z_range_m)):
        assert (raw["boxes"][..., axis] > limits[0]).all() and (raw["boxes"][..., axis] < limits[1]).all()


def test_untrained_probabilities_are_the_prior():
    head = _head(prior_probability=0.03)
    for branch in head.cls_branches:
        nn.init.zeros_(branch[-1].weight)
    torch.testing.assert_close(head(_bev())["logits"].sigmoid(), torch.full((2, 2, 7, 3), 0.03))


def test_references_are_refined_layer_by_layer():
    # With branches that always say u, layer k's centre is sigmoid(logit(reference) + (k + 1) u).
    # docs/reference.md 4.6, Refinement
    head = _head(num_layers=3)
    u = torch.tensor([0.4, -0.2, 0.0, 0.0, 0.1, 0.0, 0.0, 1.0, 0.0, 0.0])
    for branch in head.reg_branches:
        nn.init.zeros_(branch[-1].weight)
        branch[-1].bias.data.copy_(u)
    start = head.reference_points(head.query_positions.weight).sigmoid().logit()
    boxes = head(_bev(1))["boxes"][:, 0]
    for layer in range(3):
        fraction = (start + (layer + 1) * u[[0, 1, 4]]).sigmoid()
        expected = fraction * torch.tensor([50.0, 30.0, 6.0]) + torch.tensor([-20.0, -15.0, -3.0])
        torch.testing.assert_close(boxes[layer][:, [0, 1, 4]], expected, rtol=1e-4, atol=1e-3)


def test_every_parameter_gets_a_finite_gradient_also_without_boxes():
    for samples in ([_sample(BOXES, [0, 2]), _sample([], [])], [_sample([], []), _sample([], [])]):
        head = _head()
        # Away from the start, where zero weights stop some gradients.
        for parameter in head.parameters():
            nn.init.normal_(parameter, std=0.2)
        losses = head.loss(head(_bev()), samples)
        counts = {"unknown_target_values", "objects_beyond_grid"}
        assert set(losses) == {"loss_cls", "loss_bbox", "d0.loss_cls", "d0.loss_bbox"} | counts
        _total(losses).backward()
        for name, parameter in head.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            if len(samples[0].gt_instances_3d.labels_3d):
                assert parameter.grad.abs().sum() > 0, name
        if not len(samples[0].gt_instances_3d.labels_3d):
            assert losses["loss_bbox"].item() == 0 and losses["loss_cls"].item() > 0


def test_batch_of_two_equals_two_batches_of_one():
    head, bev = _head().eval(), _bev(2)
    raw = head(bev)
    samples = [_sample(BOXES, [0, 2]), _sample(BOXES[:1], [1])]
    both = head.loss(raw, samples)
    parts = {key: 0.0 for key in both}
    for b in range(2):
        single = head(BEVFeatures(bev.features[b : b + 1], GRID))
        torch.testing.assert_close(single["logits"][:, 0], raw["logits"][:, b], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(single["boxes"][:, 0], raw["boxes"][:, b], rtol=1e-5, atol=1e-4)
        for key, value in head.loss(single, samples[b : b + 1]).items():
            # Losses are means over boxes: 2 of the 3 belong to the first sample.
            parts[key] += value.item() * (2, 1)[b] / 3
    for key in set(both) - {"unknown_target_values"}:
        assert both[key].item() == pytest.approx(parts[key], rel=1e-4)
    decoded = head.predict(raw, samples)[1]["pred_instances_3d"]
    alone = head.predict(head(BEVFeatures(bev.features[1:], GRID)), samples[1:])[0]["pred_instances_3d"]
    torch.testing.assert_close(decoded.scores_3d, alone.scores_3d)


def test_unknown_velocity_takes_out_that_value_or_the_row():
    raw = _head()(_bev(1))
    boxes, labels = [torch.tensor(BOXES)], [torch.tensor([0, 2])]
    unknown = [boxes[0].clone()]
    unknown[0][1, 7:] = math.nan
    weights = torch.tensor([1.0] * 8 + [0.2] * 2)
    for mode, dims in (("value", 8), ("row", 0)):
        head = _head(criterion=dict(unknown_targets=mode))
        full, partial = (head.loss_of_boxes(raw, gt, labels) for gt in (boxes, unknown))
        query = (head.match(raw, boxes, labels)[0, -1] == 1).nonzero().item()
        difference = (raw["boxes"][-1, 0, query] - encode_boxes(boxes[0])[1]).abs() * weights
        expected = full["loss_bbox"] - 0.25 * difference[dims:].sum() / 2
        torch.testing.assert_close(partial["loss_bbox"], expected)
        torch.testing.assert_close(partial["loss_cls"], full["loss_cls"])
        assert partial["unknown_target_values"].item() == 10 - dims
        assert full["unknown_target_values"].item() == 0
        assert _total(partial).isfinite()


def test_nan_predictions_give_a_nan_loss():
    raw = {key: value.clone() for key, value in _head()(_bev(1)).items()}
    raw["boxes"][-1, 0] = math.nan
    raw["logits"][-1, 0] = math.nan
    losses = _head().loss_of_boxes(raw, [torch.tensor(BOXES)], [torch.tensor([0, 2])])
    assert losses["loss_cls"].isnan() and losses["loss_bbox"].isnan()
    assert losses["d0.loss_cls"].isfinite()


def test_more_boxes_than_queries():
    head = _head(num_queries=2)
    losses = head.loss_of_boxes(head(_bev(1)), [torch.tensor(BOXES * 3)], [torch.tensor([0, 2] * 3)])
    assert _total(losses).isfinite()
    assert (head.match(head(_bev(1)), [torch.tensor(BOXES * 3)], [torch.tensor([0, 2] * 3)]) >= 0).all()


def test_labels_that_are_no_class_are_refused():
    head = _head()
    for label in (-1, 3):
        with pytest.raises(ValueError, match="do not fit 3 classes"):
            head.loss(head(_bev(1)), [_sample(BOXES, [0, label])])


def test_a_larger_bev_shows_the_same_places():
    # Features that depend on metres alone: a grid that reaches further must give the same answer where both see.
    wide = BEVGrid((18, 14), (-30.0, 40.0), (-45.0, 45.0), (-3.0, 3.0))
    head = _head(grid=BEVGrid((1, 1), (-8.0, 10.0), (-6.0, 6.0), (-3.0, 3.0)))

    def features(grid):
        x, y = grid.cell_centers().unbind(-1)
        plane = torch.stack([x, y, torch.ones_like(x)]) / 30
        mixed = (torch.ones(16, 3) / torch.arange(1, 17)[:, None]) @ plane.flatten(1)
        return BEVFeatures(mixed.view(1, 16, *grid.shape), grid)

    for layer in head.layers:
        layer.cross_attention.sampling_offsets.bias.data.mul_(0.1)
    near, far = head(features(GRID)), head(features(wide))
    torch.testing.assert_close(near["boxes"], far["boxes"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(near["boxes"], head(_bev(1))["boxes"], atol=1e-3)


def test_decode_keeps_the_best_pairs_of_query_and_class():
    head = _head(decoding=dict(max_num=4, post_center_range_m=None))
    logits = torch.tensor([[2.0, -1.0, 1.0], [0.0, 3.0, -2.0]])
    codes = torch.zeros(2, 10)
    codes[1, 0], codes[:, 7] = 5.0, 1.0
    boxes, scores, labels = head.decode(logits, codes)
    assert labels.tolist() == [1, 0, 2, 0] and (boxes[:, 2] == -0.5).all()  # a metre high, the centre at 0
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.0, 1.0, 0.0]).sigmoid())
    assert boxes[:, 0].tolist() == [5.0, 0.0, 0.0, 5.0] and (boxes[:, 3:6] == 1).all() and (boxes[:, 6] == 0).all()
    assert len(_head(decoding=dict(post_center_range_m=None)).decode(logits, codes)[0]) == 6


def test_decode_filters_centres_before_they_sink_to_the_bottom():
    volume = BEVGrid((6, 10), (-10.0, 10.0), (-10.0, 10.0), (-1.0, 1.0))
    head = _head(grid=volume, decoding=dict(post_center_range_m=(-10, -10, -1, 10, 10, 1)))
    codes = torch.zeros(3, 10)
    codes[:, 5] = math.log(4.0)  # bottom at -2, outside; centre at 0, inside
    codes[1, 4], codes[2, 1] = 1.5, -10.0
    boxes, _, _ = head.decode(torch.zeros(3, 3), codes)
    assert sorted(boxes[:, 1].tolist()) == [-10.0] * 3 + [0.0] * 3
    torch.testing.assert_close(boxes[:, 2], torch.full((6,), -2.0))


@pytest.mark.parametrize(
    ("threshold", "best", "kept"),
    [(0.5, 0.6, 1), (0.5, 0.46, 1), (0.5, 0.4, 2), (0.9, 0.45, 1), (0.5, 0.005, 3)],
)
def test_score_threshold_gives_way_by_tenths(threshold, best, kept):
    # 0.5 * 0.9 = 0.45 lets 0.46 pass alone; 0.4 and 0.37 wait for 0.364; below 0.01 all pass.
    head = _head(decoding=dict(score_threshold=threshold, post_center_range_m=None), classes=("thing",))
    logits = torch.tensor([best, best - 0.03 if best == 0.4 else best / 3, best / 4]).logit().unsqueeze(1)
    assert len(head.decode(logits, torch.zeros(3, 10))[1]) == kept


def test_predict_gives_lidar_boxes_on_their_bottom():
    head = _head()
    raw = {"logits": torch.zeros(1, 1, 1, 3), "boxes": torch.tensor([[[[3.0, 4, 0, 0, 1, math.log(2.0), 1, 0, 5, 6]]]])}
    instances = head.predict(raw, [BEVDataSample()])[0]["pred_instances_3d"]
    box = instances.bboxes_3d
    torch.testing.assert_close(box.tensor[0], torch.tensor([3.0, 4, 0, 1, 1, 2, math.pi / 2, 5, 6]))
    torch.testing.assert_close(box.gravity_center[0], torch.tensor([3.0, 4, 1]))


def test_autocast_keeps_places_in_full_precision():
    head, bev = _head().eval(), _bev(1)
    exact = head(bev)
    with torch.autocast("cpu", torch.bfloat16):
        raw = head(bev)
        losses = head.loss_of_boxes(raw, [torch.tensor(BOXES)], [torch.tensor([0, 2])])
    assert raw["boxes"].dtype == raw["logits"].dtype == losses["loss_bbox"].dtype == torch.float32
    torch.testing.assert_close(raw["boxes"], exact["boxes"], rtol=0.02, atol=0.3)


def test_a_few_steps_find_the_boxes():
    head = _head(decoding=dict(max_num=2))
    bev, samples = _bev(1), [_sample(BOXES, [0, 2])]
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        _total(head.loss(head(bev), samples)).backward()
        nn.utils.clip_grad_norm_(head.parameters(), 10.0)
        optimizer.step()
    found = head.predict(head(bev), samples)[0]["pred_instances_3d"]
    order = found.labels_3d.argsort()
    assert found.labels_3d[order].tolist() == [0, 2] and (found.scores_3d > 0.3).all()
    torch.testing.assert_close(found.bboxes_3d.tensor[order][:, :3], torch.tensor(BOXES)[:, :3], rtol=0, atol=0.5)


@pytest.mark.parametrize(
    ("axis", "grid"),
    [
        ("x", dict(x_range_m=(-61.3, 51.2))),
        ("y", dict(y_range_m=(-102.4, 102.4))),
        ("z", dict(z_range_m=(-5.0, 10.5))),
    ],
)
def test_a_volume_beyond_the_kept_range_is_refused(axis, grid):
    """The published range ends at 61.2 m and at 10 m up and down: a volume up to there is kept whole, none beyond."""
    edge = dict(shape=(6, 10), x_range_m=(-61.2, 61.2), y_range_m=(-61.2, 61.2), z_range_m=(-10.0, 10.0))
    _head(grid=edge)
    with pytest.raises(ValueError, match=rf"decoding.post_center_range_m: {axis} ends at .* the head's grid at"):
        _head(grid={**edge, **grid})
    _head(grid={**edge, **grid}, decoding=dict(post_center_range_m=None))


def test_built_from_a_config_and_mistakes_are_named():
    config = dict(
        type="QueryDetectionHead", in_channels=16, grid=dict(shape=(6, 10)), classes=CLASSES, decoder=dict(num_layers=1)
    )
    assert isinstance(MODELS.build(config), QueryDetectionHead)
    for change, words in (
        (dict(criterion=dict(code_weights=[1.0])), "code_weights: 1 values"),
        (dict(criterion=dict(unknown_targets="all")), "unknown_targets: 'all' is none of value, row"),
        (dict(criterion=dict(code_weight=[1.0])), "criterion: unknown key 'code_weight'; did you mean 'code_weights'"),
        (dict(decoding=dict(post_center_range_m=[1.0])), "post_center_range_m: 1 values"),
        (dict(decoding=300), "decoding: 300 must be a dict of BoxDecoding's values"),
        (dict(decoder=dict(num_heads=5)), "num_heads: 16 channels"),
        (dict(decoder=dict(head_width="wide")), "head_width"),
        (dict(decoder=dict(layers=6)), "decoder: unknown key 'layers'; did you mean 'num_layers'"),
    ):
        with pytest.raises(ValueError, match=words):
            QueryDetectionHead(**{**{key: value for key, value in config.items() if key != "type"}, **change})


def test_split_self_attention_is_torchs():
    torch.manual_seed(0)
    ours, theirs = MultiHeadSelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    theirs.in_proj_weight.data = torch.cat([ours.query_key_proj.weight, ours.value_proj.weight])
    theirs.in_proj_bias.data = torch.randn(36)
    ours.query_key_proj.bias.data, ours.value_proj.bias.data = theirs.in_proj_bias.data.split([24, 12])
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = ours.output_proj.weight.data, ours.output_proj.bias.data
    queries, positions = torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    expected = theirs(queries + positions, queries + positions, queries)[0]
    torch.testing.assert_close(ours(queries, positions), expected)


def test_replicated_self_attention_is_its_formula():
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(6, 2, head_width="replicated")
    queries, positions = torch.randn(1, 4, 6), torch.randn(1, 4, 6)
    asked = queries + positions
    heads = []
    for head in range(2):
        rows = slice(6 * head, 6 * head + 6)
        query = asked @ layer.query_key_proj.weight[:12][rows].T + layer.query_key_proj.bias[:12][rows]
        key = asked @ layer.query_key_proj.weight[12:][rows].T + layer.query_key_proj.bias[12:][rows]
        value = queries @ layer.value_proj.weight[rows].T + layer.value_proj.bias[rows]
        heads.append((query @ key.transpose(1, 2) / math.sqrt(6)).softmax(-1) @ value)
    torch.testing.assert_close(layer(queries, positions), layer.output_proj(torch.cat(heads, -1)))
    assert sum(p.numel() for p in layer.parameters()) == 4 * 2 * 6 * 6 + 3 * 12 + 6


def test_cross_attention_looks_where_it_starts():
    # Zero logits weigh all points alike; one point a head, one pixel off (docs/reference.md 4.5, Init).
    layer = DeformableCrossAttention(4, num_heads=4, num_points=1)
    for linear in (layer.value_proj, layer.output_proj):
        nn.init.eye_(linear.weight)
    tokens = torch.arange(15.0).view(1, 15, 1).expand(-1, -1, 4)
    reference = torch.tensor([[[2.5 / 5, 1.5 / 3]]])  # centre of pixel (row 1, column 2), token 7
    looked_at = layer(torch.randn(1, 1, 4), reference, tokens, ((3, 5),))
    torch.testing.assert_close(looked_at, torch.tensor([[[8.0, 12.0, 6.0, 2.0]]]))  # right, +y, left, -y


def test_positional_encoding_tells_column_then_row():
    layer = LearnedPositionalEncoding(2, rows=3, columns=4)
    encoding = layer()
    assert encoding.shape == (4, 3, 4)
    for r, c in ((0, 0), (2, 1), (1, 3)):
        assert torch.equal(encoding[:2, r, c], layer.column_embed.weight[c])
        assert torch.equal(encoding[2:, r, c], layer.row_embed.weight[r])

"""The mask head: its place codes, targets, matching, losses, masked attention and how masks become segments."""

from __future__ import annotations

import math

import pytest
import torch

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.losses.dense import binary_focal_loss, dice_loss
from bevstack.models.heads import MaskSegmentationHead
from bevstack.models.heads.mask_segmentation_decoding import instances_of, segments_of
from bevstack.models.heads.mask_segmentation_targets import sample_cells, target_panoptic
from bevstack.models.layers.mask_decoder import FourierEncoding, MaskDecoderLayer, MaskDecoderSize, MaskedCrossAttention
from bevstack.structures import BEVDataSample, BEVFeatures, PanopticMap

GRID = BEVGrid(shape=(6, 8), x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 6.0))
THINGS, STUFF = ("car", "pedestrian"), ("divider", "drivable_area")


def head_of(grid=GRID, num_queries=7, num_convs=2, criterion=None, **decoder) -> MaskSegmentationHead:
    torch.manual_seed(0)
    size = dict(num_layers=2, num_heads=2, feed_forward_channels=32, token_stride=2)
    return MaskSegmentationHead(
        4,
        grid,
        THINGS,
        STUFF,
        channels=16,
        num_queries=num_queries,
        pixel_decoder=dict(channels=8, num_convs=num_convs),
        decoder={**size, **decoder},
        criterion=criterion,
    )


def truth_of(grid=GRID) -> PanopticMap:
    """Two cars and a pedestrian on a road in the left three quarters of the grid."""
    rows, columns = grid.shape
    segments = torch.full(grid.shape, -1)
    segments[:, : columns * 3 // 4] = 3
    segments[0:2, 0:2] = 0
    segments[rows - 2 :, 1:3] = 1
    segments[rows // 2, columns // 2] = 2
    return PanopticMap(segments, torch.tensor([0, 0, 1, 3]), torch.tensor([4, 5, 6, -1]), THINGS, STUFF, grid)


def sample_of(panoptic) -> BEVDataSample:
    sample = BEVDataSample(metainfo=dict(token="t"))  # noqa: S106
    sample.gt_panoptic = panoptic
    return sample


def bev_of(grid=GRID, batch=1, seed=3) -> BEVFeatures:
    return BEVFeatures(torch.randn(batch, 4, *grid.shape, generator=torch.Generator().manual_seed(seed)), grid)


# Place codes.


def test_the_product_of_two_codes_is_a_function_of_their_distance():
    # Closed form: sum over axes and frequencies of w cos(2 pi f (a - b)).
    encoding = FourierEncoding(num_frequencies=3, lowest=0.5, highest=8.0)
    a, b = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(0))
    weights = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    product = (encoding.spread(weights) * encoding(a) * encoding(b)).sum(-1)
    frequencies = torch.tensor([0.5, 2.0, 8.0])
    cosines = (2 * math.pi * frequencies * (a - b).unsqueeze(-1)).cos().flatten(1)
    torch.testing.assert_close(product, (weights * cosines).sum(-1), rtol=1e-4, atol=1e-4)


def test_untrained_masks_are_blobs_around_the_queries_places():
    # Expected by construction: with the embeddings of looks at zero, a mask is highest in the cell of its place.
    grid = BEVGrid(shape=(30, 40), x_range_m=(-20.0, 20.0), y_range_m=(-15.0, 15.0))
    head = head_of(grid)
    torch.nn.init.zeros_(head.mask_embedding[-1].weight)
    raw = head(bev_of(grid))
    masks = head.mask_logits(raw["mask_embeddings"][0, -1], raw["cell_embeddings"][0])
    peaks = masks.flatten(1).argmax(1)
    column, row = (head.reference_points.sigmoid() * torch.tensor([40, 30])).unbind(-1)
    assert ((peaks % 40 + 0.5 - column).abs() <= 0.51).all() and ((peaks // 40 + 0.5 - row).abs() <= 0.51).all()
    # ... with the height of the constants: 16 frequencies of weight 0.3 and the odds of a probability of 0.05
    assert masks.amax().item() == pytest.approx(16 * 0.3 - math.log(19), abs=0.2)
    assert len(peaks.unique()) == 7


def test_masks_lie_on_the_grid_of_the_head_by_metres():
    # A head whose grid is a part of B_t's, cell for cell: where its query stands does not depend on B_t's extent.
    part = BEVGrid(shape=(4, 4), x_range_m=(0.0, 8.0), y_range_m=(-6.0, 2.0))
    head = head_of(part).eval()
    raw = head(bev_of())
    assert raw["cell_embeddings"].shape == (1, 8, 4, 4)
    cells = head.cell_embedding(head.convs(bev_of().features))[..., :4, 4:]
    torch.testing.assert_close(raw["cell_embeddings"], cells, rtol=1e-4, atol=1e-4)


# Masked attention.


def test_a_query_sees_the_tokens_it_is_allowed_alone():
    # Expected: the update with tokens 0-2 allowed equals attention over a map of those tokens only; a query that is
    # allowed none sees all.
    torch.manual_seed(0)
    attention = MaskedCrossAttention(8, 2)
    queries, keys, values = torch.randn(1, 2, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    allowed = torch.zeros(1, 2, 6, dtype=torch.bool)
    allowed[0, 0, :3] = True
    masked = attention(queries, keys, values, allowed)
    alone, everything = attention(queries, keys[:, :3], values[:, :3]), attention(queries, keys, values)
    torch.testing.assert_close(masked[:, 0], alone[:, 0])
    torch.testing.assert_close(masked[:, 1], everything[:, 1])
    assert not torch.allclose(masked[:, 0], everything[:, 0])


@pytest.mark.parametrize("head_width", ["split", "replicated"])
def test_attention_by_the_plain_formula(head_width):
    # Expected: softmax(q k / sqrt(d)) v for each head, written out (Vaswani et al. 2017, eq. 1).
    torch.manual_seed(0)
    attention = MaskedCrossAttention(8, 2, head_width=head_width)
    queries, keys, values = torch.randn(1, 2, 8), torch.randn(1, 6, 8), torch.randn(1, 6, 8)
    width = 4 if head_width == "split" else 8
    heads = []
    for head in range(2):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (f(x)[0, :, part] for f, x in ((attention.query_proj, queries), (attention.key_proj, keys),
                                                 (attention.value_proj, values)))  # fmt: skip
        heads.append((q @ k.T / math.sqrt(width)).softmax(-1) @ v)
    torch.testing.assert_close(attention(queries, keys, values)[0], attention.output_proj(torch.cat(heads, -1)))


@pytest.mark.parametrize("masked", [True, False])
def test_masked_attention_masks_in_the_head(masked):
    # B_t is changed only in tokens outside one query's first mask. Its own cross-attention must not notice; without
    # masked attention it does. Self-attention is cut (its output set to zero), for it carries news between queries.
    head = head_of(num_layers=1, masked_attention=masked, num_convs=1).eval()
    torch.nn.init.zeros_(head.layers[0].self_attention.output_proj.weight)
    torch.nn.init.zeros_(head.mask_embedding[-1].weight)  # masks of places alone, whatever the cells look like
    torch.nn.init.zeros_(head.mask_embedding[-1].bias[-1:])  # wide enough to cover some tokens, not all
    for conv in head.convs.modules():  # each cell for itself
        if isinstance(conv, torch.nn.Conv2d):
            conv.weight.data[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    bev = bev_of()
    pooled = torch.nn.functional.avg_pool2d
    first = head._answer(head.queries[None], head.reference_points.sigmoid()[None])[1][0]
    logits = head.mask_logits(first, torch.zeros(8, *GRID.shape))
    seen = pooled(logits[None], 2)[0] > 0  # tokens of 2 x 2 cells
    query = int(seen.flatten(1).sum(1).argmax())
    assert 0 < seen[query].sum() < seen[query].numel()
    outside = ~seen[query].repeat_interleave(2, 0).repeat_interleave(2, 1)
    other = BEVFeatures(torch.where(outside, bev.features + 3, bev.features), GRID)
    before, after = head(bev)["logits"][0, -1, query], head(other)["logits"][0, -1, query]
    assert torch.allclose(before, after, atol=1e-6) == masked


def test_the_attention_s_masks_are_the_averages_of_the_cells_logits():
    # Expected: averaging logits over 2 x 2 cells equals the product with averaged embeddings, both being linear.
    head = head_of(masked_attention=True).eval()
    raw = head(bev_of())
    embeddings, cells = raw["mask_embeddings"][0, 0], raw["cell_embeddings"][0]
    pooled = torch.nn.functional.avg_pool2d(cells, 2)
    expected = torch.nn.functional.avg_pool2d(head.mask_logits(embeddings, cells), 2)
    torch.testing.assert_close(head._product(embeddings, pooled, head.token_codes), expected, rtol=1e-4, atol=1e-4)


def test_a_decoder_layer_with_zero_updates_only_normalises():
    # Closed form: LayerNorm three times of what is already normalised.
    layer = MaskDecoderLayer(8, MaskDecoderSize(num_heads=2, feed_forward_channels=16))
    for linear in (layer.cross_attention.output_proj, layer.self_attention.output_proj, layer.feed_forward[3]):
        torch.nn.init.zeros_(linear.weight)
    queries = torch.randn(1, 3, 8)
    out = layer(queries, torch.randn(1, 3, 8), torch.randn(1, 5, 8), torch.randn(1, 5, 8))
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(queries, (8,)), rtol=1e-3, atol=1e-3)


# Targets, matching, losses.


def perfect_raw(head, panoptic, order) -> dict:
    """Raw outputs whose masks are the true ones: cell embeddings are one-hot owners, a query's picks one."""
    embeddings = torch.zeros(1, 1, len(head.queries), head.mask_embedding[-1].out_features - 16 + 32)
    embeddings[..., -1] = -9.0
    logits = torch.zeros(1, 1, len(head.queries), 5)
    logits[..., 4] = 9.0
    for segment, query in enumerate(order):
        embeddings[0, 0, query, segment] = 18.0
        logits[0, 0, query] = torch.nn.functional.one_hot(panoptic.labels[segment], 5) * 9.0
    cells = torch.zeros(1, 8, *GRID.shape)
    cells[0, : len(panoptic)] = panoptic.masks().float()
    return {"logits": logits, "mask_embeddings": embeddings, "cell_embeddings": cells}


@pytest.mark.parametrize("sampled_cells", [0, 30])
def test_queries_are_matched_to_the_segments_they_show(sampled_cells):
    head, panoptic, order = head_of(criterion=dict(sampled_cells=sampled_cells)), truth_of(), [5, 1, 3, 0]
    raw = perfect_raw(head, panoptic, order)
    matched = head.match(raw, [head.targets(panoptic)])[0, 0].tolist()
    assert matched == [3, 1, -1, 2, -1, 0, -1]
    losses = head.loss(raw, [sample_of(panoptic)])
    assert set(losses) == {"loss_class", "loss_focal", "loss_dice"}
    # Closed form: a probability of sigmoid(+-9) in every cell, of softmax(9, 0, 0, 0, 0) for every class.
    assert losses["loss_class"].item() == pytest.approx(2 * math.log(1 + 4 * math.exp(-9)), rel=1e-3)
    assert losses["loss_focal"].item() < 1e-9 and losses["loss_dice"].item() < 1e-2
    predicted = head.predict(raw, [sample_of(panoptic)])[0]
    found = predicted["pred_panoptic"]
    assert torch.equal(found.cell_labels(), panoptic.cell_labels())
    for segment, query in enumerate(order[:3]):  # instances are named by their queries
        assert torch.equal(found.segments == found.instance_ids.tolist().index(query), panoptic.segments == segment)
    assert found.instance_ids[found.labels == 3].tolist() == [-1]
    instances = predicted["pred_masks"]
    confident = instances.scores > 0.5
    assert instances.labels[confident].sort().values.tolist() == [0, 0, 1]


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_losses_are_the_formulas_of_the_matched_pairs(classification):
    # Expected: every loss written out for the pairs that the matcher gives, one layer after another.
    head, panoptic = head_of(criterion=dict(classification=classification)), truth_of()
    raw = head(bev_of())
    matched = head.match(raw, [head.targets(panoptic)])[0]
    losses = head.loss(raw, [sample_of(panoptic)])
    truth = panoptic.masks().flatten(1).float()
    for layer, prefix in ((0, "d0."), (1, "")):
        masks = head.mask_logits(raw["mask_embeddings"][0, layer], raw["cell_embeddings"][0]).flatten(1)
        pairs = [(q, g) for q, g in enumerate(matched[layer].tolist()) if g >= 0]
        assert len(pairs) == 4
        focal = sum(binary_focal_loss(masks[q], truth[g]).mean() for q, g in pairs) / 4
        dice = sum(dice_loss(masks[q], truth[g]) for q, g in pairs) / 4
        assert losses[prefix + "loss_focal"].item() == pytest.approx(20 * focal.item(), rel=1e-4)
        assert losses[prefix + "loss_dice"].item() == pytest.approx(5 * dice.item(), rel=1e-4)
        wanted = {q: int(panoptic.labels[g]) for q, g in pairs}
        logits = raw["logits"][0, layer]
        if classification == "softmax":
            weights = [1.0 if q in wanted else 0.1 for q in range(7)]
            parts = [-w * logits[q].log_softmax(-1)[wanted.get(q, 4)] for q, w in enumerate(weights)]
            expected = sum(parts) / sum(weights)
        else:
            target = torch.zeros(7, 4)
            for q, label in wanted.items():
                target[q, label] = 1
            expected = binary_focal_loss(logits, target).sum() / 4
        assert losses[prefix + "loss_class"].item() == pytest.approx(2 * expected.item(), rel=1e-4)


def test_nothing_true_trains_no_object_alone():
    # Expected: no mask to be right about; classes learn "no object", masks get a gradient of exactly zero.
    empty = PanopticMap(torch.full(GRID.shape, -1), *torch.zeros(2, 0).long(), THINGS, STUFF, GRID)
    head = head_of()
    losses = head.loss(head(bev_of()), [sample_of(empty)])
    assert losses["loss_focal"] == 0 and losses["loss_dice"] == 0 and losses["loss_class"] > 0
    sum(losses.values()).backward()
    assert head.classifier.bias.grad.abs().sum() > 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in head.cell_embedding.parameters())


def test_more_segments_than_queries():
    # Expected: as many pairs as queries, in loss and normaliser alike.
    head = head_of(num_queries=2)
    raw = head(bev_of())
    assert (head.match(raw, [head.targets(truth_of())]) >= 0).sum() == 2 * 2
    assert all(value.isfinite() for value in head.loss(raw, [sample_of(truth_of())]).values())


def test_sampled_cells_see_every_thing():
    # Expected: all nine cells of things, the rest evenly from the other 2991; each stands for its share of them.
    grid = BEVGrid(shape=(50, 60))
    panoptic = truth_of(grid)
    cells, weights = sample_cells(panoptic, 40)
    owners = panoptic.segments.flatten()[cells]
    assert len(cells.unique()) == 40 and owners[:9].tolist() == [0] * 4 + [2] + [1] * 4
    assert set(owners[9:].tolist()) == {-1, 3}
    torch.testing.assert_close(weights, torch.tensor([1.0] * 9 + [2991 / 31] * 31))
    assert torch.equal(cells, sample_cells(panoptic, 40)[0])
    everything, ones = sample_cells(panoptic, 0)
    assert torch.equal(everything, torch.arange(3000)) and (ones == 1).all()
    none = PanopticMap(torch.full(grid.shape, -1), *torch.zeros(2, 0).long(), THINGS, STUFF, grid)
    cells, weights = sample_cells(none, 40)
    assert torch.equal(cells, torch.arange(40) * 75) and (weights == 75).all()


def test_things_that_cover_everything_are_thinned():
    # Expected: every 75th cell of the one thing, as there is nothing else; half of the cells where there is a road.
    grid = BEVGrid(shape=(50, 60))
    segments = torch.zeros(grid.shape).long()
    panoptic = PanopticMap(segments, torch.tensor([0, 3]), torch.tensor([0, -1]), THINGS, STUFF, grid)
    cells, weights = sample_cells(panoptic, 40)
    assert torch.equal(cells, torch.arange(40) * 75) and (weights == 75).all()
    segments[:25] = 1
    cells, weights = sample_cells(panoptic, 40)
    assert torch.equal(cells[:20], 1500 + torch.arange(20) * 75) and torch.equal(cells[20:], torch.arange(20) * 75)
    assert (weights == 75).all()


def test_targets_that_do_not_fit_say_what_to_change():
    other = BEVGrid(shape=(6, 8), x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 7.0))
    with pytest.raises(InputError, match="gt_panoptic: not there: add MakePanopticMap"):
        target_panoptic([BEVDataSample()], THINGS, STUFF, GRID)
    with pytest.raises(InputError, match="has the stuff .*'divider', 'drivable_area'.*, the head .*'walkway'"):
        target_panoptic([sample_of(truth_of())], THINGS, ("walkway",), GRID)
    with pytest.raises(InputError, match="lies on .* the head on .* same grid"):
        target_panoptic([sample_of(truth_of())], THINGS, STUFF, other)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'sigmoid' is none of softmax, focal"):
        head_of(criterion=dict(classification="sigmoid"))
    with pytest.raises(ValueError, match="num_layers \\(0\\)"):
        head_of(num_layers=0)
    with pytest.raises(ValueError, match="num_convs \\(0\\)"):
        head_of(num_convs=0)
    with pytest.raises(ValueError, match="decoder: unknown key 'layers'; did you mean 'num_layers'"):
        head_of(layers=2)
    with pytest.raises(ValueError, match="'car'.* cannot be things and stuff"):
        MaskSegmentationHead(4, GRID, THINGS, ("car",))
    with pytest.raises(ValueError, match="do not split over 3 heads"):
        head_of(num_heads=3)


# From masks to segments.


def test_a_cell_s_owner_has_the_highest_product():
    # By hand, one row of six cells; scores of class 0 (thing), class 0, class 1 (stuff), class 1:
    #   query 0 (0.9): .9 .9 .6 .1 .0 .0   query 1 (0.6): .0 .0 .9 .9 .0 .0
    #   query 2 (0.8): .0 .0 .0 .0 .9 .4   query 3 (0.7): .8 .0 .0 .0 .0 .6
    # cell 0: .81 (0) against .56 (3); cell 2: .54 (0) against .54 (1): the first; cell 3: query 1; cell 4: query 2;
    # cell 5: .32 (2) against .42 (3): query 3.
    masks = torch.tensor(
        [[0.9, 0.9, 0.6, 0.1, 0, 0], [0, 0, 0.89, 0.9, 0, 0], [0, 0, 0, 0, 0.9, 0.4], [0.8, 0, 0, 0, 0, 0.6]]
    )[:, None]
    scores = torch.tensor([[0.9, 0.0], [0.6, 0.0], [0.0, 0.8], [0.0, 0.7]])
    segments, found = segments_of(scores, masks, 1, 0.5, 0.0)
    assert segments.tolist() == [[0, 0, 0, 1, 2, 2]] and found.tolist() == [[0, 0], [0, 1], [1, -1]]
    # Query 1 and query 3 own half of their masks (1 of 2 cells): left out where more is asked for.
    segments, found = segments_of(scores, masks, 1, 0.5, 0.6)
    assert segments.tolist() == [[0, 0, 0, -1, 1, -1]] and found.tolist() == [[0, 0], [1, -1]]
    # Without query 1 (0.6 < 0.65) cell 3 is nobody's: query 0 wins it with a mask below one half.
    segments, found = segments_of(scores, masks, 1, 0.65, 0.0)
    assert segments.tolist() == [[0, 0, 0, -1, 1, 1]] and found.tolist() == [[0, 0], [1, -1]]
    segments, found = segments_of(scores, masks, 1, 0.95, 0.0)
    assert (segments == -1).all() and found.shape == (0, 2)


def test_instances_are_scored_by_class_and_mask():
    # By hand: 0.5 * mean(.9, .7) = 0.4; 0.8 * 0.6 = 0.48; the third's mask is empty. The best thing class counts.
    masks = torch.tensor([[[0.9, 0.7, 0.1]], [[0.0, 0.5, 0.6]], [[0.5, 0.5, 0.5]]])
    scores = torch.tensor([[0.5, 0.3], [0.1, 0.8], [1.0, 0.0]])
    found, confidences, labels = instances_of(scores, masks, 10)
    torch.testing.assert_close(confidences, torch.tensor([0.48, 0.4]))
    assert labels.tolist() == [1, 0] and found.tolist() == [[[False, False, True]], [[True, True, False]]]
    assert len(instances_of(scores, masks, 1)[1]) == 1
    assert [len(part) for part in instances_of(scores[:, :0], masks, 10)] == [0, 0, 0]


@pytest.mark.parametrize("masked", [False, True], ids=["whole-map", "masked"])
def test_one_sample_is_learned_by_heart(masked):
    # Expected: after 150 steps on one random sample every thing and every layer is there, with IoU above 0.9.
    grid = BEVGrid(shape=(24, 32), x_range_m=(-16.0, 16.0), y_range_m=(-12.0, 12.0))
    head = head_of(grid, masked_attention=masked, num_queries=12, token_stride=4)
    bev, panoptic = bev_of(grid), truth_of(grid)
    samples = [sample_of(panoptic)]
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(head.loss(head(bev), samples).values()).backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 5.0)
        optimizer.step()
    predicted = head.predict(head(bev), samples)[0]["pred_panoptic"]
    assert predicted.labels.sort().values.tolist() == [0, 0, 1, 3]
    masks, truth = predicted.masks(), panoptic.masks()
    for segment, label in enumerate(panoptic.labels.tolist()):
        of_class = masks[predicted.labels == label]
        iou = (of_class & truth[segment]).flatten(1).sum(1) / (of_class | truth[segment]).flatten(1).sum(1)
        assert iou.max() > 0.9, (segment, iou)

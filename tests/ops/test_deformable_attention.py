"""The operator against a plain loop over samples, finite differences, and its own second backend."""

import pytest
import torch

from bevstack.ops import deformable_attention

SHAPES = ((5, 7), (3, 4))


def case(dtype=torch.float64, groups=1, seed=0, batch=2, queries=6, num_slots=2, maps=3, heads=2, channels=3):
    generator = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=generator, dtype=dtype)

    levels, points, anchors = len(SHAPES), 4, 2
    tokens = sum(h * w for h, w in SHAPES)
    return dict(
        value=draw(maps, tokens, heads, channels).requires_grad_(),
        shapes=SHAPES,
        slots=torch.randint(-1, maps, (batch, queries, num_slots), generator=generator),
        references=torch.rand(batch, queries, num_slots, anchors, 2, generator=generator, dtype=dtype) * 1.4 - 0.2,
        offsets=draw(batch, queries, groups, heads, levels, points, 2).requires_grad_(),
        logits=draw(batch, queries, groups, heads, levels * points).requires_grad_(),
        slot_weights=torch.rand(batch, queries, num_slots, generator=generator, dtype=dtype),
    )


def by_loops(value, shapes, slots, references, offsets, logits, slot_weights):
    """The definition in the docstring, one sample at a time."""
    batch, queries, num_slots = slots.shape
    heads, levels, points = offsets.shape[3:6]
    result = value.new_zeros(batch, queries, heads, value.shape[-1])
    for b, q, s in ((b, q, s) for b in range(batch) for q in range(queries) for s in range(num_slots)):
        m = int(slots[b, q, s])
        if m < 0:
            continue
        g = s if offsets.shape[2] > 1 else 0
        for h in range(heads):
            weights = logits[b, q, g, h].softmax(-1).view(levels, points)
            start = 0
            for level, (rows, columns) in enumerate(shapes):
                grid = value[m, start : start + rows * columns, h].view(rows, columns, -1)
                start += rows * columns
                for p in range(points):
                    anchor = references[b, q, s, p % references.shape[3]]
                    x = anchor[0] * columns + offsets[b, q, g, h, level, p, 0] - 0.5
                    y = anchor[1] * rows + offsets[b, q, g, h, level, p, 1] - 0.5
                    for i in (int(y.floor()), int(y.floor()) + 1):
                        for j in (int(x.floor()), int(x.floor()) + 1):
                            if 0 <= i < rows and 0 <= j < columns:
                                share = (1 - (y - i).abs()) * (1 - (x - j).abs())
                                result[b, q, h] += slot_weights[b, q, s] * weights[level, p] * share * grid[i, j]
    return result.flatten(2)


@pytest.mark.parametrize("backend", ["indexing", "embedding_bag"])
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_definition_with_gradients(backend, groups):
    # expected value: the definition, written as loops, differentiated by autograd
    inputs = case(groups=groups)
    expected = by_loops(**inputs)
    actual = deformable_attention(**inputs, backend=backend)
    torch.testing.assert_close(actual, expected)
    learned = [inputs["value"], inputs["offsets"], inputs["logits"]]
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    wanted = torch.autograd.grad(expected, learned, upstream)
    for got, want in zip(torch.autograd.grad(actual, learned, upstream), wanted, strict=True):
        torch.testing.assert_close(got, want)


def test_gradients_by_finite_differences():
    inputs = case(batch=1, queries=2, heads=1, channels=2)
    learned = {name: inputs.pop(name) for name in ("value", "offsets", "logits")}

    def op(value, offsets, logits):
        return deformable_attention(value=value, offsets=offsets, logits=logits, **inputs, backend="embedding_bag")

    assert torch.autograd.gradcheck(op, (learned["value"], learned["offsets"], learned["logits"]))


def test_no_camera_sees_anything():
    # an empty slot gives exactly zero, and gradients that are zero, not missing
    inputs = case(dtype=torch.float32)
    inputs["slots"] = torch.full_like(inputs["slots"], -1)
    result = deformable_attention(**inputs)
    assert (result == 0).all()
    result.sum().backward()
    assert (inputs["value"].grad == 0).all() and (inputs["offsets"].grad == 0).all()


def test_points_far_outside_are_zero_and_finite():
    inputs = case(dtype=torch.float32)
    # behind a camera: docs/reference.md 4.5, point_sampling
    inputs["references"] = torch.full_like(inputs["references"], 6e6)
    result = deformable_attention(**inputs)
    assert (result == 0).all()


def test_bf16_values_are_summed_in_float32():
    inputs = case(dtype=torch.float32)
    exact = deformable_attention(**inputs)
    rough = deformable_attention(**{**inputs, "value": inputs["value"].bfloat16()})
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.02, rtol=0.02)


def test_sizes_that_do_not_fit_are_named():
    inputs = case()
    with pytest.raises(ValueError, match="tokens"):
        deformable_attention(**{**inputs, "shapes": ((5, 7),)})
    with pytest.raises(ValueError, match="backend"):
        deformable_attention(**inputs, backend="fast")

"""The triton backend on the CPU, in triton's interpreter: what the tests of all backends leave out.

Not collected by its name: ``test_triton.py`` runs it in a process with ``TRITON_INTERPRET=1``.
"""

import pytest
import torch

from bevstack.ops import deformable_attention
from bevstack.ops.backends import triton
from tests.ops.test_deformable_attention import away_from_pixel_borders, drawn_case, result_and_gradients

SIZES = dict(batch=2, queries=5, num_slots=2, maps=4, heads=1, channels=4, shared=True, anchors=2, seed=7)
NAMES = ("result", "value", "references", "offsets", "logits", "slot_weights")


def small_case(**changes):
    inputs = drawn_case(**{**SIZES, **changes})
    away_from_pixel_borders(inputs)
    return inputs


def by_both(inputs):
    """Result and gradients of the triton backend and of the reference, by name."""
    both = [result_and_gradients(inputs, backend) for backend in ("triton", "reference")]
    return zip(NAMES, *both, strict=True)


@pytest.mark.parametrize("changes", [
    {"maps": 12},
    {"maps": 1, "shared": False},
    {"channels": 5, "heads": 2},
    {"channels": 24},
    {"queries": 0},
], ids=str)  # fmt: skip
def test_programs_of_a_few_rows(changes, monkeypatch):
    # expected: the reference; 10 rows are two programs of 4 and one of 2, channels 5 and 24 are no power of two
    monkeypatch.setattr(triton, "INTERPRETED_ROWS", 4)
    for name, got, want in by_both(small_case(**changes)):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_float16_values():
    # expected: the reference in float32 on the same, rounded values; bounds: float16's 11 bits
    inputs = small_case()
    half = {**inputs, "value": inputs["value"].detach().half().requires_grad_()}
    whole = {**inputs, "value": half["value"].detach().float().requires_grad_()}
    got, want = result_and_gradients(half, "triton"), result_and_gradients(whole, "reference")
    assert got[0].dtype == got[1].dtype == torch.float16
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one.float(), other, atol=2e-3 * float(other.detach().abs().max()), rtol=2e-3)


def test_what_lies_apart_is_read_where_it_lies():
    # expected: bit-equal to dense copies; a layer's share of a wider product, offsets and logits turned from (h, G)
    inputs = small_case(shared=False, heads=2)
    dense = deformable_attention(**inputs, backend="triton")
    maps, tokens, heads, channels = inputs["value"].shape
    wide = torch.zeros(maps, tokens, 3, heads, channels)
    wide[:, :, 1] = inputs["value"].detach()
    apart = {**inputs, "value": wide[:, :, 1]}
    for name in ("offsets", "logits"):
        apart[name] = inputs[name].detach().transpose(2, 3).contiguous().transpose(2, 3)
        assert not apart[name].is_contiguous()
    assert torch.equal(deformable_attention(**apart, backend="triton"), dense)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_whole_numbers_add_up_the_same_in_any_order(deterministic):
    # expected: the reference; and bit-equal when the queries come the other way round
    inputs = small_case(queries=40)
    upstream = torch.randn(2, 40, 4, generator=torch.Generator().manual_seed(1))
    gradients = []
    for turned in (False, True):
        one = {
            key: tensor.flip(1) if turned and key not in ("value", "shapes") else tensor
            for key, tensor in inputs.items()
        }
        result = deformable_attention(**one, backend="triton")
        gradients.append(torch.autograd.grad(result, inputs["value"], upstream.flip(1) if turned else upstream)[0])
    expected = torch.autograd.grad(deformable_attention(**inputs, backend="reference"), inputs["value"], upstream)[0]
    torch.testing.assert_close(gradients[0], expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(*gradients)


def test_no_number_shows_in_a_deterministic_gradient_of_values(deterministic):
    # expected: NaN, as in the sum of floats, and no number that somebody would go on with
    inputs = small_case()
    inputs["slots"] = inputs["slots"].clamp_min(0)
    with torch.no_grad():
        inputs["offsets"][0, 0] = float("nan")
    result = deformable_attention(**inputs, backend="triton")
    assert torch.autograd.grad(result.sum(), inputs["value"])[0].isnan().any()


@pytest.mark.parametrize("name", ["references", "offsets", "slot_weights"])
def test_nothing_of_an_empty_slot_is_read(name):
    # expected: the result with zeros in their place
    inputs = small_case(shared=False)
    empty = inputs["slots"] < 0
    assert empty.any() and not empty.all()
    results = []
    for filling in (0.0, float("nan")):
        filled = inputs[name].detach().clone()
        filled[empty] = filling
        results.append(deformable_attention(**{**inputs, name: filled}, backend="triton"))
    assert torch.equal(*results)

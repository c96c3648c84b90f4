"""The operator on every backend against a plain loop over samples, finite differences, and the reference backend."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.errors import InputError
from bevstack.ops import backends, deformable_attention
from bevstack.ops.deformable_attention import fused

HERE = [name for name in backends.BACKENDS if backends.unavailable(name) is None]
FAST = [name for name in HERE if name != "reference"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # test_triton.py runs the cases so: a second each

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


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("groups", [1, 2])
def test_equals_the_definition_with_gradients(backend, groups):
    # expected value: the definition, written as loops in double precision, differentiated by autograd
    exact = case(groups=groups)
    expected = by_loops(**exact)
    inputs = {
        name: tensor.detach().float().requires_grad_(tensor.requires_grad)
        if torch.is_tensor(tensor) and tensor.is_floating_point()
        else tensor
        for name, tensor in exact.items()
    }
    actual = deformable_attention(**inputs, backend=backend)
    torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=2e-6)
    learned = ["value", "offsets", "logits"]
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=expected.dtype)
    wanted = torch.autograd.grad(expected, [exact[name] for name in learned], upstream)
    found = torch.autograd.grad(actual, [inputs[name] for name in learned], upstream.float())
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("backend", HERE)
def test_gradients_by_finite_differences(backend, groups):
    # double precision goes to the reference backend, whichever is asked for; places and slot weights are learned, too
    inputs = case(batch=1, queries=2, heads=1, channels=2, groups=groups)
    names = ("value", "offsets", "logits", "references", "slot_weights")
    learned = [inputs.pop(name).detach().requires_grad_() for name in names]

    def op(*tensors):
        return deformable_attention(**dict(zip(names, tensors, strict=True)), **inputs, backend=backend)

    assert torch.autograd.gradcheck(op, learned)


DRAWN = dict(
    batch=st.integers(1, 2),
    queries=st.integers(0, 40),
    num_slots=st.integers(1, 3),
    maps=st.sampled_from([1, 6, 12]),
    heads=st.sampled_from([1, 2, 5]),
    channels=st.sampled_from([4, 32]),
    shared=st.booleans(),
    anchors=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 2**31 - 1),
)


def drawn_case(batch, queries, num_slots, maps, heads, channels, shared, anchors, seed):
    """Random sizes; samples lie inside, across every border and far outside; about a third of the slots is empty."""
    generator = torch.Generator().manual_seed(seed)
    points, groups = 4, 1 if shared else num_slots
    tokens = sum(h * w for h, w in SHAPES)

    def draw(*size):
        return torch.randn(*size, generator=generator)

    slots = torch.randint(0, maps, (batch, queries, num_slots), generator=generator)
    empty = torch.rand(slots.shape, generator=generator) < 0.3
    return dict(
        value=draw(maps, tokens, heads, channels).requires_grad_(),
        shapes=SHAPES,
        slots=torch.where(empty, -1, slots),
        references=(
            torch.rand(batch, queries, num_slots, anchors, 2, generator=generator) * 1.4 - 0.2
        ).requires_grad_(),
        offsets=(2 * draw(batch, queries, groups, heads, len(SHAPES), points, 2)).requires_grad_(),
        logits=(3 * draw(batch, queries, groups, heads, len(SHAPES) * points)).requires_grad_(),
        slot_weights=torch.rand(batch, queries, num_slots, generator=generator).requires_grad_(),
    )


def result_and_gradients(inputs, backend, names=("value", "references", "offsets", "logits", "slot_weights")):
    result = deformable_attention(**inputs, backend=backend)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
    return [result, *torch.autograd.grad(result, [inputs[name] for name in names], upstream.to(result.dtype))]


@pytest.mark.parametrize("backend", FAST)
def test_offsets_and_logits_as_views_of_one_product(backend):
    # expected value: the same numbers without gaps between them, through the reference
    inputs = drawn_case(2, 9, 2, 6, 2, 4, False, 2, 11)
    names = ("offsets", "logits")
    flat = [inputs[name].detach().transpose(2, 3).flatten(2) for name in names]
    widths = [tensor.shape[-1] for tensor in flat]
    both = torch.cat(flat, dim=-1).requires_grad_()
    shapes = [inputs[name].transpose(2, 3).shape[2:] for name in names]
    views = [
        part.unflatten(-1, shape).transpose(2, 3) for part, shape in zip(both.split(widths, -1), shapes, strict=True)
    ]
    result = deformable_attention(**{**inputs, **dict(zip(names, views, strict=True))}, backend=backend)
    wanted = deformable_attention(**inputs, backend="reference")
    torch.testing.assert_close(result, wanted, atol=1e-5, rtol=1e-5)
    found = torch.autograd.grad(result.sum(), both)[0].split(widths, -1)
    for name, gradient, shape in zip(names, found, shapes, strict=True):
        expected = torch.autograd.grad(wanted.sum(), inputs[name], retain_graph=True)[0]
        torch.testing.assert_close(gradient.unflatten(-1, shape).transpose(2, 3), expected, atol=1e-4, rtol=1e-4)


def away_from_pixel_borders(inputs):
    """Moves offsets so that no sample lies within 1e-3 of a whole pixel, where the derivative jumps."""
    with torch.no_grad():
        for level, (rows, columns) in enumerate(SHAPES):
            size = torch.tensor([columns, rows], dtype=torch.float32)
            points, anchors = inputs["offsets"].shape[5], inputs["references"].shape[3]
            anchor = inputs["references"].repeat(1, 1, 1, points // anchors, 1)[:, :, :, None]
            offsets = inputs["offsets"][:, :, :, :, level]
            for _ in range(20):
                share = (anchor * size + offsets - 0.5) % 1
                near = (
                    ((share < 1e-3) | (share > 1 - 1e-3)).any(2, keepdim=True)
                    if offsets.shape[2] == 1
                    else ((share < 1e-3) | (share > 1 - 1e-3))
                )
                offsets += 4e-3 * near


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=6 if INTERPRETED else 25, deadline=None, derandomize=True)
@given(**DRAWN)
def test_every_backend_agrees_with_the_reference_in_float32(backend, **sizes):
    # expected value: the reference backend, which the loops above check
    inputs = drawn_case(**sizes)
    away_from_pixel_borders(inputs)
    for got, want in zip(result_and_gradients(inputs, backend), result_and_gradients(inputs, "reference"), strict=True):
        torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=4 if INTERPRETED else 15, deadline=None, derandomize=True)
@given(**DRAWN)
def test_every_backend_agrees_with_the_reference_in_bfloat16(backend, **sizes):
    # expected value: the same values, rounded to bfloat16, through the reference in float32; bounds: bfloat16's 8 bits
    inputs = drawn_case(**sizes)
    away_from_pixel_borders(inputs)
    half = {**inputs, "value": inputs["value"].detach().bfloat16().requires_grad_()}
    whole = {**inputs, "value": half["value"].detach().float().requires_grad_()}
    got, want = result_and_gradients(half, backend), result_and_gradients(whole, "reference")
    assert got[0].dtype == got[1].dtype == torch.bfloat16
    for one, other in zip(got, want, strict=True):
        bound = 2e-2 * float(other.detach().abs().max()) + 1e-6 if other.numel() else 1.0
        torch.testing.assert_close(one.float(), other, atol=bound, rtol=2e-2)


def test_second_derivatives_go_to_the_reference():
    # expected value: the reference backend's own second derivative
    found = {}
    for backend in ("reference", *(name for name in FAST if name != "torch")):
        inputs = case(dtype=torch.float32)
        result = deformable_attention(**inputs, backend=backend)
        first = torch.autograd.grad(result.square().sum(), inputs["value"], create_graph=True)[0]
        found[backend] = torch.autograd.grad(first.square().sum(), inputs["offsets"])[0]
    for gradient in found.values():
        torch.testing.assert_close(gradient, found["reference"], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("shared", [True, False])
def test_more_heads_than_the_native_backend_places_at_once(shared):
    # expected value: the reference backend's; 300 heads of 8 samples are more than 2,048
    inputs = drawn_case(1, 5, 2, 2, 300, 4, shared, 2, 7)
    with torch.no_grad():
        found, wanted = (deformable_attention(**inputs, backend=backend) for backend in ("native", "reference"))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_native_backend_gives_the_same_bits_every_time(threads):
    # expected value: its own result on one thread
    inputs = drawn_case(2, 300, 2, 6, 5, 32, True, 4, 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        once = result_and_gradients(inputs, "native")
        torch.set_num_threads(threads)
        again = result_and_gradients(inputs, "native")
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("backend", [name for name in HERE if name in ("native", "triton")])
def test_torch_sees_one_node(backend):
    # torch.library.opcheck: schema, fake tensors, autograd registration and compiled graphs agree
    inputs = drawn_case(1, 7, 2, 6, 2, 4, True, 2, 5)
    sizes = [size for shape in SHAPES for size in shape]
    names = ("slots", "references", "offsets", "logits", "slot_weights")
    torch.library.opcheck(fused, (inputs["value"], sizes, *(inputs[name] for name in names), backend))

    class Model(torch.nn.Module):
        def forward(self, value, offsets):
            return deformable_attention(**{**inputs, "value": value, "offsets": offsets}, backend=backend)

    with torch.no_grad():
        exported = torch.export.export(Model(), (inputs["value"].detach(), inputs["offsets"].detach()))
    graphs = [part.graph for part in exported.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    targets = [str(node.target) for graph in graphs for node in graph.nodes]
    assert targets.count("bevstack.deformable_attention.default") == 1, targets
    assert not any("index" in target or "softmax" in target for target in targets)


@pytest.mark.parametrize("backend", HERE)
def test_a_place_that_is_no_number_shows(backend):
    # NaN in an offset makes that query's result NaN, and no other's
    inputs = case(dtype=torch.float32)
    inputs["slots"] = torch.zeros_like(inputs["slots"])
    with torch.no_grad():
        inputs["offsets"][0, 0] = float("nan")
    result = deformable_attention(**inputs, backend=backend)
    assert result[0, 0].isnan().all() and not result[0, 1:].isnan().any() and not result[1].isnan().any()


def test_a_backend_is_chosen_before_any_work(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "torch")
    assert backends.backend_for("cpu", double=False) == "torch"
    assert backends.backend_for("cpu", double=True) == "reference"
    assert backends.backend_for("cpu", double=False, name="reference") == "reference"
    monkeypatch.setenv(backends.ENVIRONMENT, "cuda")
    with pytest.raises(InputError, match="environment: BEVSTACK_OPS: unknown backend 'cuda'"):
        backends.backend_for("cpu", double=False)
    monkeypatch.delenv(backends.ENVIRONMENT)
    with pytest.raises(InputError, match="my.py: ops_backend: unknown backend 'fast'"):
        backends.select_backend("fast", "my.py")
    try:
        backends.select_backend("torch")
        assert backends.backend_for("cpu", double=False) == "torch"
    finally:
        backends.select_backend(None)
    assert backends.backend_for("cpu", double=False) == "native"


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


def test_threads_are_torchs_own():
    """Of the two runtimes that are loaded once scikit-learn is, the one beside torch is called."""
    code = (
        "import sklearn.metrics, torch, re, ctypes; from pathlib import Path; from bevstack.ops.jit import openmp_call;"
        "call = openmp_call(); maps = Path('/proc/self/maps').read_text();"
        "place = ctypes.cast(call, ctypes.c_void_p).value;"
        "ends = lambda line: [int(number, 16) for number in line.split()[0].split('-')];"
        "line = next(l for l in maps.splitlines() if ends(l)[0] <= place < ends(l)[1]);"
        "print(len(set(re.findall(r'/\\S*libgomp\\S*', maps))), Path(line.split()[-1]).is_relative_to("
        "Path(torch.__file__).parent))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    loaded, own = done.stdout.split()
    assert int(loaded) >= 1 and own == "True"

"""The small set of recordings, which is in the repository: whole, small, and a part of the large one."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
import torch

from tests.parity.golden import SMALL_FOLDER, large_folder, load_case, recordings
from tests.parity.manifests import SIZES, load_manifest
from tests.parity.reduce_golden import MANIFESTS, REDUCTIONS, reduced

# The families and what one case of each has to hold, so that no test of it is without a small recording.
FAMILIES = {
    "a_ms_deform_attn": ["out.output", "out.grad_value", "out.grad_attention_weights"],
    "b_temporal_self_attention": [f"out.bs1_{history}_{sample}" for history in ("prev", "noprev") for sample in (0, 1)],
    "c_spatial_cross_attention": ["out.bs1_0", "out.deform3d"],
    "d_encoder": ["out.bev_mask", "out.ref_2d", "out.bs1_prev_layers_0", "out.bs1_noprev_layers_0"],
    "d_point_sampling_real": ["out.bev_mask", "out.reference_points_cam", "out.ref_3d"],
    "e_perception_transformer": ["out.bev_bs1_prev_0", "out.bev_bs1_prev_1", "out.fwd_bs1_1.inter_references"],
    "e_rotate": ["out.rot0", "out.rot7"],
    "f_head": ["out.bs1_prev_0.all_bbox_preds", "out.loss_bs2_zero_gt.total", "out.thr.decode1.scores"],
    "g_modulated_deform_conv": ["out.0.y", "out.2.grad_offset"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_there(name) -> None:
    small, large = recordings(name)
    assert (small.id, small.marks, large.id) == (f"small-{name}", (), f"large-{name}"), "a test runs on each set"
    case = load_case(small.values[0])
    assert set(FAMILIES[name]) <= set(case.tensors)
    assert case.info["tensors"] == {key: list(tensor.shape) for key, tensor in sorted(case.tensors.items())}


def test_nothing_else_and_under_3_mb() -> None:
    files = {path.name: path.stat().st_size for path in SMALL_FOLDER.iterdir()}
    cases = {f"{name}{ending}" for name in FAMILIES for ending in (".json", ".safetensors.xz")}
    assert set(files) == {"README.md", *cases, *(f"checkpoint_{size}.json.xz" for size in SIZES)}
    assert set(REDUCTIONS) == set(FAMILIES) and sum(files.values()) < 3_000_000


@pytest.mark.parametrize("name", FAMILIES)
def test_it_is_what_the_script_makes_of_the_large_set(name) -> None:
    case = load_case(recordings(name)[0].values[0])
    source = large_folder() / f"{name}.safetensors"
    if not source.is_file() or hashlib.sha256(source.read_bytes()).hexdigest() != case.info["made_from_sha256"]:
        pytest.skip(f"{source} is absent, or another recording than the one that the small set was made from")
    info, tensors = reduced(name, large_folder())
    assert case.info == json.loads(json.dumps(info)) and set(case.tensors) == set(tensors)
    assert all(torch.equal(case[key], tensor) for key, tensor in tensors.items())


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_those_of_the_large_set(name) -> None:
    source = large_folder() / f"{name}.json"
    if not source.is_file():
        pytest.skip(f"{source} is absent")
    assert load_manifest(name.removeprefix("checkpoint_")) == json.loads(source.read_text())


def test_a_test_that_needs_more_has_no_small_recording() -> None:
    """Names that a test needs decide, and not the test's own silence."""
    name = "c_spatial_cross_attention"
    assert [parameter.id for parameter in recordings(name, "out.bs2_mask_same")] == [f"large-{name}"]
    assert re.fullmatch(REDUCTIONS[name].drop, "out.bs2_mask_same")


def test_without_the_large_set_its_tests_say_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BEVSTACK_GOLDEN", str(tmp_path / "absent"))
    small, large = recordings("f_head")
    assert small.marks == () and "is absent" in large.marks[0].kwargs["reason"]

"""The published configurations against the manifests of the published checkpoints: names, shapes, parameter counts."""

from pathlib import Path

import pytest

from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.interop.reference_keys import our_names
from tests.parity.manifests import SIZES, load_manifest, parameter_count

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "bevformer"
# Millions: docs/reference.md 2.1.
PUBLISHED_MILLIONS = {"tiny": 33.5, "small": 59.5, "base": 69.0}


@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_are_exactly_the_published_ones(size):
    manifest = load_manifest(size)
    model = build_model(load_config(CONFIGS / f"bevformer_{size}.py"), "meta")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == parameter_count(manifest)
    assert round(count / 1e6, 1) == PUBLISHED_MILLIONS[size]


@pytest.mark.parametrize("size", SIZES)
def test_every_published_key_has_its_place_and_every_place_its_key(size):
    manifest = load_manifest(size)
    own = build_model(load_config(CONFIGS / f"bevformer_{size}.py"), "meta").state_dict()
    filled = {}
    for name, shape in manifest.items():
        names = our_names(name)
        assert names is not None, name
        if name == "pts_bbox_head.code_weights":
            assert names == ()  # a setting here
            continue
        for ours in names:
            assert ours not in filled
            filled[ours] = name
        values = sum(own[ours].numel() for ours in names)
        assert values == (own[names[0]].new_empty(shape)).numel(), name
        if len(names) == 1:
            assert list(own[names[0]].shape) == shape, name
    assert set(filled) == set(own)

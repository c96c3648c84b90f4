"""Grouped numbers of a constructor: as value, as dict, by default, and what is said about a wrong one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from bevstack.models.heads import DenseDetectionHead
from bevstack.models.layers.conv import ConvType
from bevstack.models.layers.settings import Settings


@dataclass(frozen=True)
class Size(Settings):
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        if self.num_layers < 1:
            raise ValueError("num_layers: at least 1")


def test_a_value_its_fields_or_nothing():
    # Expected: the value itself; the given fields and the defaults of the others.
    size = Size(num_heads=8)
    assert Size.build(size, "size") is size
    assert Size.build(dict(num_layers=3), "size") == Size(3, 4)
    assert Size.build(None, "size") == Size.build({}, "size") == Size()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (dict(num_layer=3), "size: unknown key 'num_layer'; did you mean 'num_layers'?"),
        (dict(heads=3), "size: unknown key 'heads'; did you mean 'num_heads'?"),
        (3, "size: 3 must be a dict of Size's values"),
        (dict(num_layers=0), "num_layers: at least 1"),
    ],
)
def test_a_wrong_one_is_told(value, said):
    with pytest.raises(ValueError) as caught:
        Size.build(value, "size")
    assert str(caught.value) == said


def test_a_convolution_may_be_named_alone():
    assert ConvType.build("grouped") == ConvType.build(dict(kind="grouped")) == ConvType("grouped")
    with pytest.raises(ValueError, match="conv: unknown key 'group'; did you mean 'groups'"):
        ConvType.build(dict(kind="grouped", group=2))


def test_radii_are_of_all_classes_and_of_no_other():
    # Expected: the head names both sides, instead of a KeyError or a radius that nobody uses.
    for radii in (dict(car=1.0), dict(car=1.0, bus=2.0, truck=2.0)):
        with pytest.raises(ValueError, match=r"nms_radius_m: names \['.*\], the classes are \['bus', 'car'\]"):
            DenseDetectionHead(4, dict(shape=(4, 4)), ("car", "bus"), decoding=dict(nms_radius_m=radii))

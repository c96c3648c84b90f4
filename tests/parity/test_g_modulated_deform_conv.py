"""Modulated deformable convolution against the recorded output and gradients of mmcv's compiled operator."""

import pytest

from bevstack.ops.modulated_deform_conv import modulated_deform_conv
from tests.parity.golden import assert_matches, load_case, recordings


@pytest.mark.parametrize("path", recordings("g_modulated_deform_conv"))
@pytest.mark.parametrize("max_columns", [2**24, 1], ids=["whole", "in_pieces"])
def test_every_recorded_call(max_columns, path):
    case = load_case(path)
    assert case.info["calls"]
    for call in case.info["calls"]:
        index = call["index"]
        names = ["x", "offset", "mask", "weight"] + ["bias"] * call["bias"]
        tensors = {name: case[f"in.{index}.{name}"].clone().requires_grad_() for name in names}
        settings = {name: call[name] for name in ("stride", "padding", "dilation", "groups", "deform_groups")}
        y = modulated_deform_conv(**tensors, **settings, max_columns=max_columns)
        assert_matches(y, case[f"out.{index}.y"], f"call {index}")
        y.backward(case[f"in.{index}.grad_output"])
        for name, tensor in tensors.items():
            assert_matches(tensor.grad, case[f"out.{index}.grad_{name}"], f"call {index}, gradient of {name}")

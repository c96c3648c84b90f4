"""Box codes: closed forms, and mmdet3d's own boxes as the judge of what a centre is."""

import math

import torch

from bevstack.geometry.box_code import bottom_centred, decode_boxes, encode_boxes

BOX = torch.tensor([[10.0, -4.0, -1.5, 4.0, 2.0, 1.5, 2.5, 3.0, -1.0], [0.0, 1.0, 0.0, 1.0, 1.0, 1.0, -3.0, 0.0, 0.0]])


def test_code_by_hand():
    expected = [10, -4, math.log(4), math.log(2), -0.75, math.log(1.5), math.sin(2.5), math.cos(2.5), 3, -1]
    torch.testing.assert_close(encode_boxes(BOX)[0], torch.tensor(expected))


def test_round_trip():
    torch.testing.assert_close(bottom_centred(decode_boxes(encode_boxes(BOX))), BOX)


def test_centre_is_mmdet3d_gravity_centre():
    from mmdet3d.structures import LiDARInstance3DBoxes

    centre = LiDARInstance3DBoxes(BOX, box_dim=9).gravity_center
    torch.testing.assert_close(decode_boxes(encode_boxes(BOX))[:, :3], centre)


def test_unknown_velocity_stays_unknown_and_no_boxes_are_fine():
    box = BOX.clone()
    box[0, 7:] = math.nan
    assert encode_boxes(box)[0].isnan().tolist() == [False] * 8 + [True] * 2
    assert encode_boxes(torch.zeros(0, 9)).shape == (0, 10)
    assert decode_boxes(torch.zeros(0, 10)).shape == (0, 9)


def test_a_box_without_extent_has_a_finite_code():
    # Closed form: the logarithm of a millimetre.
    flat = BOX[:1] * torch.tensor([1, 1, 1, 0, 1, 1, 1, 1, 1.0])
    torch.testing.assert_close(encode_boxes(flat)[0, 2].item(), math.log(1e-3))
    torch.testing.assert_close(encode_boxes(flat)[0, 3:], encode_boxes(BOX)[0, 3:])

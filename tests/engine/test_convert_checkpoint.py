"""Converting checkpoints: synthetic ones made from the manifests there and back, and one line for a wrong file."""

from pathlib import Path

import pytest
import torch

from bevstack.engine.checkpoint import load_weights, read_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.convert_checkpoint import convert, main, published_config, write_safetensors
from bevstack.engine.models import build_model, model_of_checkpoint
from bevstack.errors import InputError
from bevstack.interop.foreign_weights import check_box_convention
from bevstack.interop.reference_keys import our_names
from bevstack.reference.compat import apply_compat
from tests.parity.manifests import SIZES, load_manifest, synthetic_checkpoint

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "bevformer"
LAST_REGRESSOR = "pts_bbox_head.reg_branches.{}.4.{}"


def restored(ours, names):
    """The published tensors again: cut pieces joined where the published model holds one tensor."""
    published = {}
    for name in names:
        pieces = [ours[piece] for piece in our_names(name)]
        dim = 1 if name.endswith("query_embedding.weight") else 0
        if pieces:
            published[name] = pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)
    return published


@pytest.mark.parametrize("size", SIZES)
def test_a_synthetic_checkpoint_there_and_back(size):
    state = synthetic_checkpoint(load_manifest(size))
    model = build_model(load_config(CONFIGS / f"bevformer_{size}.py"), "meta")
    ours, metadata = convert(state, model, "published.pth", "bevformer")
    back = restored(ours, state)
    assert set(state) - set(back) == {"pts_bbox_head.code_weights"}
    for name, tensor in back.items():
        assert torch.equal(tensor, state[name]), name
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert metadata["box_convention"] == "as in the source"


@pytest.fixture(scope="module")
def tiny_state():
    return synthetic_checkpoint(load_manifest("tiny"))


@pytest.fixture(scope="module")
def tiny_model():
    return build_model(load_config(CONFIGS / "bevformer_tiny.py"), "meta")


def test_the_tool_and_loading_directly(tiny_state, tiny_model, tmp_path, capsys):
    source, out = tmp_path / "published.pth", tmp_path / "ours.safetensors"
    torch.save({"meta": {"epoch": 24}, "state_dict": tiny_state}, source)
    assert main(CONFIGS, ["bevformer", str(source), str(out)]) == 0
    assert "bevformer_tiny.py" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.safetensors", "published.pth"]
    weights = []
    for file in (source, out):
        model = build_model(load_config(CONFIGS / "bevformer_tiny.py"), "meta").to_empty(device="cpu")
        assert load_weights(model, read_checkpoint(file)["state_dict"], file, strict=True) == ""
        weights.append(model.state_dict())
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    back = restored(weights[1], tiny_state)
    assert len(back) == len(tiny_state) - 1
    assert all(torch.equal(tensor, tiny_state[name]) for name, tensor in back.items())


def test_boxes_are_turned_when_asked(tiny_state, tiny_model):
    # docs/reference.md 4.7: channels 2 and 3 change places, 6 and 7 change places and sign, in every last layer
    ours, metadata = convert(tiny_state, tiny_model, "published.pth", "bevformer", boxes="current")
    for layer in range(6):
        for kind in ("weight", "bias"):
            old = tiny_state[LAST_REGRESSOR.format(layer, kind)]
            expected = torch.stack([*old[:2], old[3], old[2], *old[4:6], -old[7], -old[6], *old[8:]])
            assert torch.equal(ours[f"heads.detection.reg_branches.{layer}.4.{kind}"], expected)
    assert metadata["box_convention"] == "mmdet3d-1.x"


def test_turned_boxes_are_not_turned_again(tiny_model, tmp_path):
    out = tmp_path / "ours.safetensors"
    write_safetensors({"a": torch.zeros(1)}, out, {"box_convention": "mmdet3d-1.x"})
    meta = read_checkpoint(out)["meta"]
    check_box_convention(tiny_model, meta, out)
    cfg = apply_compat(load_config(CONFIGS / "bevformer_tiny.py"), "bevformer_v1")
    published = build_model(cfg, "meta")
    check_box_convention(published, {}, out)
    with pytest.raises(InputError, match="old_boxes=False"):
        check_box_convention(published, meta, out)


def test_published_boxes_are_turned_or_refused(tiny_state, tiny_model, tmp_path):
    """A config without the preset would read (w, l) as (l, w), and another yaw; of a file that kept them, too."""
    published = build_model(apply_compat(load_config(CONFIGS / "bevformer_tiny.py"), "bevformer_v1"), "meta")
    for meta, state in (({}, tiny_state), ({"kind": "bevformer", "box_convention": "as in the source"}, {})):
        check_box_convention(published, meta, "a.pth", state)
        with pytest.raises(InputError, match="a.pth: box_convention: .*detection today's: .*compat=bevformer_v1"):
            check_box_convention(tiny_model, meta, "a.pth", state)
    check_box_convention(tiny_model, {"kind": "weights", "box_convention": "as in the source"}, "a.pth", {})
    with pytest.raises(InputError, match="box_convention: .* today's"):
        model_of_checkpoint({"state_dict": tiny_state}, "a.pth", load_config(CONFIGS / "bevformer_tiny.py"), "meta")


def changed(state, **changes):
    """A copy of the state with tensors replaced (None: taken out); ``__`` stands for a dot."""
    copy = dict(state)
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del copy[name]
        else:
            copy[name] = value
    return copy


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"img_neck__fpn_convs__0__conv__bias": None}, "1 missing keys: neck.fpn_convs.0.conv.bias"),
        ({"pts_bbox_head__transformer__decoder__spare": torch.zeros(1)}, "pts_bbox_head.transformer.decoder.spare"),
        ({"img_backbone__layer5__weight": torch.zeros(1)}, "backbone.layer5.weight"),
        (
            {"pts_bbox_head__transformer__level_embeds": torch.zeros(4, 256)},
            r"encoder.level_embedding \(4, 256\) for \(1, 256\)",
        ),
    ],
)
def test_a_wrong_file_is_one_line(tiny_state, tiny_model, changes, told):
    with pytest.raises(InputError, match=told) as error:
        convert(changed(tiny_state, **changes), tiny_model, "wrong.pth", "bevformer")
    assert "\n" not in str(error.value) and str(error.value).startswith("wrong.pth: ")


def test_the_wrong_size_is_one_line(tiny_state, small):
    with pytest.raises(InputError, match="missing keys.*shapes that do not fit") as error:
        convert(tiny_state, small, "wrong.pth", "bevformer")
    assert "\n" not in str(error.value)


def test_the_configuration_is_found_by_the_number_of_cells(tiny_state):
    assert published_config(tiny_state, CONFIGS, "tiny.pth").name == "bevformer_tiny.py"
    other = changed(tiny_state, pts_bbox_head__bev_embedding__weight=torch.zeros(123, 256))
    with pytest.raises(InputError, match="123 BEV cells"):
        published_config(other, CONFIGS, "other.pth")


def test_no_checkpoint_at_all(tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, other)
    with pytest.raises(InputError, match="no BEVFormer"):
        main(CONFIGS, ["bevformer", str(other), str(tmp_path / "out.safetensors")])
    with pytest.raises(InputError, match="no such file"):
        main(CONFIGS, ["bevformer", str(tmp_path / "none.pth"), str(tmp_path / "out.safetensors")])
    with pytest.raises(InputError, match="safetensors"):
        main(CONFIGS, ["bevformer", str(other), str(tmp_path / "out.pth")])


# Backbone-only starts: names as the other projects write them.


@pytest.fixture(scope="module")
def small():
    return build_model(load_config(CONFIGS / "bevformer_base.py"), "meta").to_empty(device="cpu")


def backbone_state(model, prefix, neck=None, ours="backbone."):
    """What a file holds whose backbone (and neck) is the model's: random values under another project's names."""
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith((ours, "neck."))}
    generator = torch.Generator().manual_seed(1)
    state = {}
    for name, tensor in own.items():
        if name.startswith("neck.") and neck is None:
            continue
        other = neck + name[5:] if name.startswith("neck.") else prefix + name.removeprefix(ours)
        state[other] = (
            torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else torch.zeros_like(tensor)
        )
    return state


@pytest.mark.parametrize(("prefix", "neck"), [("backbone.", "neck."), ("img_backbone.", "img_neck.")])
def test_fcos3d_and_mmdet_files_start_backbone_and_neck(small, prefix, neck):
    # FCOS3D's detector: five FPN convolutions, of which four have a place here, and a head that has none
    state = backbone_state(small, prefix, neck)
    state |= {f"{neck}fpn_convs.4.conv.weight": torch.zeros(256, 256, 3, 3), "bbox_head.cls.weight": torch.zeros(3)}
    message = load_weights(small, state, "r101_dcn_fcos3d_pretrain.pth", strict=False)
    assert message.startswith("new weights, not in the file: encoder") and "unexpected" not in message
    own = small.state_dict()
    offsets = "layer3.5.conv2.conv_offset.weight"
    assert torch.equal(own[f"backbone.{offsets}"], state[f"{prefix}{offsets}"])
    assert torch.equal(own["neck.fpn_convs.3.conv.weight"], state[f"{neck}fpn_convs.3.conv.weight"])


def test_a_neck_of_another_shape_is_left_out(small):
    state = backbone_state(small, "backbone.", "neck.")
    state["neck.lateral_convs.0.conv.weight"] = torch.zeros(256, 256, 1, 1)
    message = load_weights(small, state, "detector.pth", strict=False)
    assert "neck" in message or "encoder" in message
    assert torch.equal(small.state_dict()["backbone.conv1.weight"], state["backbone.conv1.weight"])


def test_caffe_and_torchvision_files_start_a_resnet(small):
    # caffe as OpenMMLab ships it: bare names, no counters, no offsets of deformable convolutions
    state = {
        name: tensor
        for name, tensor in backbone_state(small, "").items()
        if not name.endswith("num_batches_tracked") and "conv_offset" not in name
    }
    load_weights(small, state, "resnet101_caffe.pth", strict=False)
    assert torch.equal(small.state_dict()["backbone.layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])

    import torchvision

    resnet = torchvision.models.resnet50(weights=None).state_dict()
    tiny = build_model(load_config(CONFIGS / "bevformer_tiny.py"), "meta").to_empty(device="cpu")
    load_weights(tiny, resnet, "resnet50.pth", strict=False)
    own = tiny.state_dict()
    assert all(torch.equal(own[f"backbone.{name}"], tensor) for name, tensor in resnet.items() if name[:3] != "fc.")


def test_a_backbone_of_another_depth_is_one_line(small):
    tiny = build_model(load_config(CONFIGS / "bevformer_tiny.py"), "meta").to_empty(device="cpu")
    for model, other, told in ((small, tiny, "missing for the backbone"), (tiny, small, "the backbone does not have")):
        with pytest.raises(InputError, match=told) as error:
            load_weights(model, backbone_state(other, ""), "wrong.pth", strict=False)
        assert "\n" not in str(error.value)
    wide = backbone_state(tiny, "") | {"conv1.weight": torch.zeros(64, 3, 5, 5)}
    with pytest.raises(InputError, match=r"conv1.weight \(64, 3, 5, 5\) for \(64, 3, 7, 7\)"):
        load_weights(tiny, wide, "wrong.pth", strict=False)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_timm_files_start_a_timm_backbone(name):
    import timm
    from torch import nn

    from bevstack.models.backbones import TimmBackbone

    full = timm.create_model(name).state_dict()
    model = nn.Module()
    model.backbone = TimmBackbone(name, out_indices=(1, 2))
    load_weights(model, full, f"{name}.pth", strict=False)
    for name, own in model.state_dict().items():
        assert any(torch.equal(own, value) for value in full.values() if value.shape == own.shape), name


def test_a_backbone_file_for_a_config(small):
    state = backbone_state(small, "backbone.", "neck.")
    ours, _ = convert(state, small, "fcos3d.pth", "backbone")
    assert {name.split(".")[0] for name in ours} == {"backbone", "neck"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.items())
    message = load_weights(small, ours, "backbone.safetensors", strict=False)
    assert message.startswith("new weights, not in the file: encoder")


def test_the_backbone_of_a_published_bevformer(tiny_state, tiny_model, small):
    ours, _ = convert(tiny_state, tiny_model, "published.pth", "backbone")
    assert {name.split(".")[0] for name in ours} == {"backbone", "neck"}
    assert torch.equal(ours["backbone.conv1.weight"], tiny_state["img_backbone.conv1.weight"])
    with pytest.raises(InputError, match="missing for the backbone: backbone.layer3.6"):
        convert(tiny_state, small, "published.pth", "backbone")


def test_weights_alone_of_a_training(tmp_path, capsys):
    """The averaged weights (``state_dict``) and the classes, nothing else; a third of the size, as Adam keeps two."""
    weights = {"module.head.weight": torch.randn(300, 400)}
    moments = {"state": {0: {"exp_avg": torch.zeros(300, 400), "exp_avg_sq": torch.zeros(300, 400)}}}
    meta = {"iter": 5, "dataset_meta": {"classes": ("car", "bus")}}
    torch.save({"state_dict": weights, "optimizer": moments, "meta": meta}, tmp_path / "epoch_1.pth")
    out = tmp_path / "model.safetensors"
    assert main(CONFIGS, ["weights", str(tmp_path / "epoch_1.pth"), str(out)]) == 0
    read = read_checkpoint(out)
    assert list(read["state_dict"]) == ["head.weight"]
    assert torch.equal(read["state_dict"]["head.weight"], weights["module.head.weight"])
    assert read["meta"]["dataset_meta"] == {"classes": ("car", "bus")}
    assert out.stat().st_size < 0.35 * (tmp_path / "epoch_1.pth").stat().st_size
    assert "1.4 MB -> 0.5 MB" in capsys.readouterr().out


def test_a_config_whose_weights_are_computed_with_is_built():
    """The demo folds BatchNorm into its packaged weights, which have no values on the meta device."""
    model = build_model(load_config(CONFIGS.parent / "demo.py"), "meta")
    assert "backbone.body.conv_stem.convolution.weight" in model.state_dict()

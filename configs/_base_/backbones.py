"""Image backbones of 1 to 10 million parameters, each with a neck that makes one map of stride 8 and 96 channels.

An entry takes the place of ``model["backbone"]`` and ``model["neck"]`` of the demo, whose encoder reads such a map:

    with read_base():
        from .demo import *
        from ._base_.backbones import BACKBONES

    model.update(BACKBONES["swin"])

All but ``efficientnet_lite0_packaged`` start from random weights. Necks take the channels that their backbone declares.
"""

_top_down = dict(type="TopDownNeck", out_channels=96, out_levels=(0,))

BACKBONES = dict(
    # the demo's: ImageNet weights from a package, frozen
    efficientnet_lite0_packaged=dict(
        backbone=dict(
            type="TimmBackbone", name="tf_efficientnet_lite0", pretrained="packaged", fold_norm=True, frozen_stages=7
        ),
        neck=_top_down,
    ),
    # depthwise-separable convolutions (Tan and Le 2019)
    efficientnet_lite0=dict(
        backbone=dict(type="TimmBackbone", name="tf_efficientnet_lite0"),
        neck=_top_down,
    ),
    # residual bottlenecks at half width, deformable convolutions in the last two stages (Zhu et al. 2019)
    resnet50_dcn=dict(
        backbone=dict(
            type="mmdet.ResNet",
            depth=50,
            base_channels=32,
            out_indices=(1, 2, 3),
            style="pytorch",
            norm_cfg=dict(type="BN"),
            norm_eval=False,
            dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, False, True, True),
        ),
        neck=_top_down,
    ),
    # global attention at one resolution, and the simple feature pyramid (Dosovitskiy et al. 2021; Li et al. 2022)
    vit=dict(
        backbone=dict(type="TimmBackbone", name="vit_tiny_patch16_224", out_indices=(-1,), model_args=dict(depth=8)),
        neck=dict(type="SimpleFeaturePyramid", out_channels=96, out_strides=(8,)),
    ),
    # attention in shifted windows (Liu et al. 2021), half as wide as the tiny one
    swin=dict(
        backbone=dict(
            type="TimmBackbone",
            name="swin_tiny_patch4_window7_224",
            model_args=dict(embed_dim=48, depths=(2, 2, 4, 2), num_heads=(2, 4, 8, 16)),
        ),
        neck=_top_down,
    ),
    # cascaded group attention (Liu et al. 2023); its levels have strides 16, 32, 64
    efficientvit_cascaded=dict(
        backbone=dict(type="TimmBackbone", name="efficientvit_m2"),
        neck=dict(upscale=2, **_top_down),
    ),
    # ReLU linear attention (Cai et al. 2023)
    efficientvit_linear=dict(
        backbone=dict(type="TimmBackbone", name="efficientvit_b1"),
        neck=_top_down,
    ),
    # 7 x 7 depthwise convolutions (Liu et al. 2022)
    convnext=dict(
        backbone=dict(type="TimmBackbone", name="convnext_atto"),
        neck=_top_down,
    ),
    # one-shot aggregation (Lee et al. 2019)
    vovnet=dict(
        backbone=dict(type="TimmBackbone", name="ese_vovnet19b_slim_dw"),
        neck=_top_down,
    ),
    # the YOLO way: cross-stage partial blocks and a path aggregation network, whose three levels are then summed
    cspdarknet_pafpn=dict(
        backbone=dict(type="mmdet.CSPDarknet", deepen_factor=0.33, widen_factor=0.5, out_indices=(2, 3, 4)),
        neck=dict(
            type="NeckSequence",
            necks=[dict(type="mmdet.YOLOXPAFPN", out_channels=96, num_csp_blocks=1), _top_down],
        ),
    ),
)

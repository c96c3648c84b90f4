"""BEVFormer-base: 1600 x 900 images, four feature levels, clips of four frames (docs/reference.md 5, base).

Published: 51.7 NDS, 41.6 mAP (docs/reference.md 2.1).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.bevformer_model import *
    from .._base_.runtime import *
    from .._base_.schedule_24_epochs import *

load_from = "ckpts/r101_dcn_fcos3d_pretrain.pth"

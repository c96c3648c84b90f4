"""bevstack: multi-camera bird's-eye-view perception on the OpenMMLab stack.

Importing the package imports no other. It only makes sure that mmcv, mmdet, mmdet3d and timm can be imported later
where compiled parts of mmcv or torchvision are absent (:mod:`bevstack.interop.standins`).
"""

from bevstack.interop.standins import install_standins

__version__ = "0.1.0"

install_standins()

from mmengine.config import read_base
with read_base():
    from .demo import *
custom_hooks = []
train_cfg.update(max_epochs=2)
param_scheduler = [dict(type="MultiStepLR", by_epoch=True, milestones=[50], gamma=0.1)]
default_hooks["logger"].update(interval=1)

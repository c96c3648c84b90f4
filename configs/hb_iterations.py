from mmengine.config import read_base
with read_base():
    from .demo import *
train_cfg = dict(by_epoch=False, max_iters=3)
custom_hooks = []
default_hooks["checkpoint"].update(by_epoch=False, interval=3)
log_processor = dict(by_epoch=False)
train_dataloader["sampler"].update(infinite=True)

from mmengine.config import read_base
with read_base():
    from .demo import *
custom_hooks = [*custom_hooks, dict(type="EarlyStoppingHook", monitor="mAP", rule="greater", patience=3)]

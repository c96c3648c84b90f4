"""What every run shares: logging, checkpoints, processes."""

default_scope = "bevstack"
default_hooks = dict(
    timer=dict(type="BudgetTimerHook"),
    logger=dict(type="LoggerHook", interval=50),
    checkpoint=dict(type="CheckpointHook", interval=1, max_keep_ckpts=3),
)
env_cfg = dict(mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
log_processor = dict(window_size=50)
randomness = dict(seed=0)
ops_backend = None  # of deformable attention: reference, torch, native, triton or auto; None: as BEVSTACK_OPS says

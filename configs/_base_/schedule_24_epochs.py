"""BEVFormer's schedule: 24 epochs, AdamW, linear warm-up and cosine; one sample on each of 8 GPUs."""

optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float32",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=500),
    dict(type="CosineAnnealingLR", by_epoch=True, begin=0, end=24, T_max=24, eta_min_ratio=1e-3),
]
train_cfg = dict(by_epoch=True, max_epochs=24, val_interval=1)
auto_scale_lr = dict(enable=False, base_batch_size=8)

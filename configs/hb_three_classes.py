from mmengine.config import read_base
with read_base():
    from .demo import *
three = ("car", "truck", "pedestrian")
model["heads"]["detection"].update(classes=three)
del model["heads"]["vehicle"]
target_pipeline = target_pipeline[:1]
train_dataloader["dataset"].update(classes=three, pipeline=[*image_pipeline, *target_pipeline, dict(type="ObjectRangeFilter", grid=head_grid), dict(type="PackBEVInputs")])
test_dataloader["dataset"].update(classes=three, pipeline=[*image_pipeline, *target_pipeline, dict(type="PackBEVInputs")])
test_evaluator = test_evaluator[:2]

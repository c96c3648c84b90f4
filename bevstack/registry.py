"""Registries of scope ``bevstack``, children of mmdet3d's: one config mixes bevstack., mmdet3d. and mmdet. parts."""

from mmdet3d import registry as _mmdet3d
from mmengine.registry import Registry

_MODEL_PLACES = [
    "bevstack.models",
    "bevstack.losses",
    "bevstack.reference.parts",
]


def _child(name: str, parent: Registry, locations: list[str]) -> Registry:
    return Registry(name, parent=parent, scope="bevstack", locations=locations)


MODELS = _child("model", _mmdet3d.MODELS, _MODEL_PLACES)
TASK_UTILS = _child(
    "task util", _mmdet3d.TASK_UTILS, ["bevstack.losses", "bevstack.tracking", "bevstack.reference.can_bus"]
)
DATASETS = _child("dataset", _mmdet3d.DATASETS, ["bevstack.datasets.nuscenes.dataset"])
TRANSFORMS = _child("transform", _mmdet3d.TRANSFORMS, ["bevstack.datasets.transforms", "bevstack.reference.velocities"])
DATA_SAMPLERS = _child("data sampler", _mmdet3d.DATA_SAMPLERS, ["bevstack.datasets.samplers"])
METRICS = _child("metric", _mmdet3d.METRICS, ["bevstack.evaluation"])
EVALUATOR = _child("evaluator", _mmdet3d.EVALUATOR, ["bevstack.evaluation"])
HOOKS = _child("hook", _mmdet3d.HOOKS, ["bevstack.engine.hooks", "bevstack.engine.evaluation_pictures"])
LOOPS = _child("loop", _mmdet3d.LOOPS, ["bevstack.engine.train_loops", "bevstack.engine.evaluation_loops"])
RUNNERS = _child("runner", _mmdet3d.RUNNERS, ["bevstack.engine.runner"])
OPTIMIZERS = _child("optimizer", _mmdet3d.OPTIMIZERS, [])
WEIGHT_INITIALIZERS = _child("weight initializer", _mmdet3d.WEIGHT_INITIALIZERS, [])
OPTIM_WRAPPERS = _child("optim_wrapper", _mmdet3d.OPTIM_WRAPPERS, ["bevstack.engine.optim_wrapper"])
OPTIM_WRAPPER_CONSTRUCTORS = _child(
    "optimizer wrapper constructor", _mmdet3d.OPTIM_WRAPPER_CONSTRUCTORS, []
)
PARAM_SCHEDULERS = _child("parameter scheduler", _mmdet3d.PARAM_SCHEDULERS, [])
VISUALIZERS = _child("visualizer", _mmdet3d.VISUALIZERS, ["bevstack.visualization"])
VISBACKENDS = _child("vis_backend", _mmdet3d.VISBACKENDS, ["bevstack.engine.visualizer_backends"])

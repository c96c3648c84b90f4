"""The one place that says what "compatible with published weights" means, and turns a config into it.

A config asks for it with one top-level entry, which :func:`bevstack.engine.config.load_config` hands to
:func:`apply_compat`::

    compat = "bevformer_v1"                                        # everything that published weights were trained with
    compat = dict(preset="bevformer_v1", rotate_center=None)       # all but one
    compat = dict(alias_shift=True)                                # one alone

Each switch replaces a part of the config by a strategy of :mod:`bevstack.reference.parts` or
:mod:`bevstack.reference.can_bus`; without an entry a config is left as it is. What each switch changes is told
in ``docs/compatibility.md``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mmengine.config import Config

from bevstack.errors import InputError

_ENCODERS = ("BEVFormerEncoder", "PaddingSeesEncoder")
_HEADS = ("QueryDetectionHead", "OldBoxesDetectionHead")
_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@dataclass(frozen=True)
class CompatSwitches:
    """What to do as the published BEVFormer does; everything is off by default (docs/reference.md 4.1).

    Args:
        alias_shift: shift the references into the previous *and* the current BEV (4.1 C).
        rotate_center: (column, row) in cells that the previous BEV is turned about; None: the origin (4.1 B).
        nearest_rotation: rotate by nearest neighbour: small turns vanish (4.1 F).
        ego_pose: align the BEV, which lives in the lidar frame, by the motion of the ego frame (4.1 I); read from
            can_bus, so it needs ``absolute_yaw`` and ``global_axis_deltas``.
        quaternion_w: can_bus[3:7] is four times w (4.1 A).
        absolute_yaw: can_bus[16] is the absolute heading (4.1 H).
        global_axis_deltas: can_bus[0:3] lies along global axes (4.1 H).
        unwrapped_yaw_change: can_bus[17] jumps by 360 degrees where the heading passes zero (4.1 G).
        visible_padding: what falls into the padding of an image counts as seen (4.1 N).
        old_boxes: the weights of the detection head speak mmdet3d 0.17's boxes; what comes out does not (4.7).
        zero_unknown_velocity: in training a box of unknown velocity stands still, and the detection head leaves out
            whole boxes with a target that is still not finite; else it leaves out the unknown values alone.
    """

    alias_shift: bool = False
    rotate_center: tuple[float, float] | None = None
    nearest_rotation: bool = False
    ego_pose: bool = False
    quaternion_w: bool = False
    absolute_yaw: bool = False
    global_axis_deltas: bool = False
    unwrapped_yaw_change: bool = False
    visible_padding: bool = False
    old_boxes: bool = False
    zero_unknown_velocity: bool = False

    @property
    def changes_alignment(self) -> bool:
        """Whether the previous BEV is aligned as published in any respect."""
        return self.alias_shift or self.nearest_rotation or self.ego_pose or self.rotate_center is not None

    @property
    def changes_can_bus(self) -> bool:
        """Whether can_bus is as published in any respect."""
        return self.quaternion_w or self.absolute_yaw or self.global_axis_deltas or self.unwrapped_yaw_change


PRESETS = {
    "bevformer_v1": CompatSwitches(
        alias_shift=True,
        rotate_center=(100.0, 100.0),
        nearest_rotation=True,
        ego_pose=True,
        quaternion_w=True,
        absolute_yaw=True,
        global_axis_deltas=True,
        unwrapped_yaw_change=True,
        visible_padding=True,
        old_boxes=True,
        zero_unknown_velocity=True,
    )
}


def compat_switches(compat: str | Mapping[str, Any]) -> CompatSwitches:
    """The switches that a config's ``compat`` names.

    Args:
        compat: name of a preset, or a dict of switches, on top of ``preset`` where it names one.

    Raises:
        InputError: unknown preset or switch, a value of the wrong kind, or ``ego_pose`` without what it is read from.
    """
    wanted: dict[str, Any] = {"preset": compat} if isinstance(compat, str) else dict(compat)
    preset = wanted.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise InputError("config", "compat", f"no preset {preset!r}; there is {', '.join(PRESETS)}")
    known = {field.name for field in fields(CompatSwitches)}
    unknown = sorted(set(wanted) - known)
    if unknown:
        reason = f"no such switch; there are preset, {', '.join(sorted(known))}"
        raise InputError("config", f"compat.{unknown[0]}", reason)
    for name, value in wanted.items():
        if name == "rotate_center":
            if value is not None and not (isinstance(value, (tuple, list)) and len(value) == 2):
                raise InputError("config", "compat.rotate_center", f"must be (column, row) or None, not {value!r}")
            wanted[name] = None if value is None else tuple(float(v) for v in value)
        elif not isinstance(value, bool):
            raise InputError("config", f"compat.{name}", f"must be True or False, not {value!r}")
    switches = replace(PRESETS[preset] if preset else CompatSwitches(), **wanted)
    if switches.ego_pose and not (switches.absolute_yaw and switches.global_axis_deltas):
        reason = "is read from can_bus, which must then have absolute_yaw and global_axis_deltas"
        raise InputError("config", "compat.ego_pose", reason)
    return switches


def apply_compat(config: Config, compat: str | Mapping[str, Any] | None = None) -> Config:
    """Put the strategies that ``compat`` asks for into a config, in place; applying it again changes nothing.

    Args:
        config: of a :class:`bevstack.models.BEVPerception` and its data.
        compat: see :func:`compat_switches`; by default the config's own ``compat`` entry.

    Returns:
        The same config.

    Raises:
        InputError: see :func:`compat_switches`; or the config has no part that a switch could change.
    """
    compat = config.get("compat") if compat is None else compat
    if not compat:
        return config
    switches, file = compat_switches(compat), config.filename or "config"
    model = config.get("model") or {}
    if switches.changes_alignment or switches.visible_padding:
        _use_reference_encoder(model, switches, file)
    heads = [head for head in (model.get("heads") or {}).values() if _name(head) in _HEADS]
    for field in ("old_boxes", "zero_unknown_velocity"):
        if getattr(switches, field) and not heads:
            raise InputError(file, f"compat.{field}", f"the model has no head of type {_HEADS[0]}")
    for head in heads:
        if switches.old_boxes:
            head["type"] = "bevstack.OldBoxesDetectionHead"
        if switches.zero_unknown_velocity:
            head["criterion"] = {**(head.get("criterion") or {}), "unknown_targets": "row"}
    if switches.zero_unknown_velocity and config.get("train_dataloader") is not None:
        for dataset in _inner_datasets(config["train_dataloader"]["dataset"]):
            _prepend(dataset, {"type": "bevstack.ZeroUnknownVelocity"})
    if switches.changes_can_bus:
        form = {
            "type": "bevstack.ReferenceCanBus",
            "quaternion_w": switches.quaternion_w,
            "absolute_yaw": switches.absolute_yaw,
            "global_axis_deltas": switches.global_axis_deltas,
            "unwrapped_yaw_change": switches.unwrapped_yaw_change,
        }
        for loader in _LOADERS:
            if config.get(loader) is not None:
                for dataset in _inner_datasets(config[loader]["dataset"]):
                    dataset["can_bus_form"] = dict(form)
    return config


def _inner_datasets(dataset: Any) -> Iterator[Any]:
    """The datasets that read samples, inside of whatever repeats or joins them."""
    inner = dataset.get("datasets") or ([dataset["dataset"]] if "dataset" in dataset else [])
    for one in inner:
        yield from _inner_datasets(one)
    if not inner:
        yield dataset


def _prepend(dataset: Any, transform: dict[str, Any]) -> None:
    """Put a transform at the start of a dataset's pipeline, once."""
    pipeline = list(dataset.get("pipeline", ()))
    if all(_name(step) != _name(transform) for step in pipeline):
        dataset["pipeline"] = [transform, *pipeline]


def _use_reference_encoder(model: Any, switches: CompatSwitches, file: str) -> None:
    encoder = model.get("encoder")
    if _name(encoder) not in _ENCODERS:
        raise InputError(file, "compat", f"model.encoder must be a {_ENCODERS[0]} for these switches")
    if switches.visible_padding:
        encoder["type"] = "bevstack.PaddingSeesEncoder"
    if switches.changes_alignment:
        model["alignment"] = {
            "type": "bevstack.ReferenceShiftAlignment",
            "rotate_center": switches.rotate_center,
            "interpolation": "nearest" if switches.nearest_rotation else "bilinear",
            "alias_shift": switches.alias_shift,
            "motion": "can_bus" if switches.ego_pose else "bev",
        }


def _name(part: Any) -> str:
    kind = part.get("type", "") if isinstance(part, Mapping) else ""
    return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]

"""The whole way in one place: images -> backbone -> neck -> BEV encoder -> B_t -> heads."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from bevstack.losses.balancing import LossBalancing, shared_weight_name
from bevstack.models.backbones.base import fitted_config, require_declared
from bevstack.models.bev.memory import push_memory
from bevstack.models.freezing import freeze, keep_evaluating
from bevstack.models.heads.base import BEVHead
from bevstack.models.layers.evaluation_mode import evaluating
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures, BEVMemory, Clip, Frame


@MODELS.register_module()
class BEVPerception(BaseModel):
    """Multi-camera perception: one shared trunk makes B_t, any number of heads read it.

    Args:
        backbone: (B * N, 3, H, W) images to a list of feature maps; or a video backbone, which says so by an attribute
            ``num_sweeps`` S > 0 and gets (B * N, S + 1, 3, H, W): what each camera took just before, oldest first, and
            the keyframe's image at the end.
        encoder: feature maps, a frame and the memory to B_t (:class:`bevstack.models.bev.BEVFormerEncoder`).
        heads: by name; each a :class:`BEVHead`. Any can be left out.
        neck: feature maps to feature maps, or None; what its config leaves out of ``in_channels`` and ``in_strides`` is
            what the backbone declares (:mod:`bevstack.models.backbones.base`).
        bev_neck: B_t to the B_t that the heads see, or None; the memory holds what the encoder made.
        temporal_fusion: joins the encoder's B_t with the memory's frames, before ``bev_neck``
            (:class:`bevstack.models.bev.TemporalConcatenation`); the encoder then makes every frame alone. None leaves
            the history to the encoder.
        image_heads: by name; heads on the image features of the keyframe. They add losses in training
            (:class:`bevstack.models.heads.PerspectiveHead`); those with a ``predict(raw, rig)`` predict, too
            (:class:`bevstack.models.heads.ImageKeypointHead`).
        bev_levels: how many levels of the image features the encoder gets, the finest first; all where not given.
        loss_weights: by head name, 1 where not named.
        loss_balancing: rule of :mod:`bevstack.losses.balancing` that weighs the heads' losses on top of
            ``loss_weights``; without one these alone count, and no weights are logged.
        frozen: names of parts that training leaves bit for bit as they are, as ``backbone`` or ``heads.detection``
            (:func:`bevstack.models.freezing.freeze`).
        memory_frames: past frames the memory keeps.
        data_preprocessor: collated data to a :class:`Clip` and samples.
    """

    def __init__(
        self,
        backbone: Mapping,
        encoder: Mapping,
        heads: Mapping[str, Mapping],
        neck: Mapping | None = None,
        bev_neck: Mapping | None = None,
        temporal_fusion: Mapping | None = None,
        image_heads: Mapping[str, Mapping] | None = None,
        bev_levels: int | None = None,
        loss_weights: Mapping[str, float] | None = None,
        loss_balancing: Mapping | None = None,
        frozen: Sequence[str] = (),
        memory_frames: int = 1,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = None if neck is None else MODELS.build(fitted_config(neck, self.backbone))
        self.encoder = MODELS.build(encoder)
        self.bev_neck = None if bev_neck is None else MODELS.build(bev_neck)
        self.heads = nn.ModuleDict({name: self._built_head(name, head) for name, head in heads.items()})
        self.temporal_fusion = None if temporal_fusion is None else MODELS.build(temporal_fusion)
        self.image_heads = nn.ModuleDict({name: MODELS.build(head) for name, head in (image_heads or {}).items()})
        self.memory_frames, self.bev_levels = memory_frames, bev_levels
        readers = {"the temporal fusion": getattr(self.temporal_fusion, "num_frames", 1)}
        readers |= {f"head '{name}'": head.history_frames for name, head in self.heads.items()}
        for reader, wanted in readers.items():
            if wanted > memory_frames:
                reason = f"{memory_frames}, but {reader} reads {wanted}; set memory_frames={wanted}"
                raise ValueError(f"memory_frames: {reason}")
        names = [*self.heads, *self.image_heads]
        unknown = set(loss_weights or {}) - set(names)
        if unknown:
            raise ValueError(f"loss_weights names {sorted(unknown)}; the heads are {sorted(names)}")
        priors = {name: (loss_weights or {}).get(name, 1.0) for name in names}
        rule = loss_balancing or dict(type="FixedWeights", logged=False)
        self.balancing: LossBalancing = MODELS.build({**rule, "priors": priors})
        self.frozen = freeze(self, frozen)
        self.shared_weight = self._shared_weight_name() if self.balancing.needs_shared_weight else None
        self.heads_in_order()

    def _built_head(self, name: str, config: Mapping) -> BEVHead:
        """The head that a config names, where it fits the B_t that this model hands to heads."""
        head = MODELS.build(config)
        if not isinstance(head, BEVHead):
            reason = f"{type(head).__name__} is no head; derive it from bevstack.models.heads.BEVHead"
            raise TypeError(f"head '{name}': {reason}")
        trunk = self.encoder if self.bev_neck is None else self.bev_neck
        channels = getattr(trunk, "out_channels", getattr(trunk, "channels", head.in_channels))
        if head.in_channels != channels:
            reason = f"in_channels is {head.in_channels}, but {type(trunk).__name__} gives {channels} channels"
            raise ValueError(f"head '{name}': {reason}; set in_channels={channels}")
        return head

    def _shared_weight_name(self) -> str:
        """The weight by which GradNorm measures: what all heads read comes after it."""
        on_bev = () if self.image_heads else ("bev_neck", "temporal_fusion", "encoder")
        return shared_weight_name(self, (*on_bev, "neck", "backbone"), self.balancing.shared_weight)

    def train(self, mode: bool = True) -> BEVPerception:
        """Training mode, or not, for all but the frozen parts."""
        super().train(mode)
        keep_evaluating(self, self.frozen)
        return self

    def forward(
        self, inputs: Clip, data_samples: Sequence[BEVDataSample] | None = None, mode: str = "tensor"
    ) -> object:
        """Run the model on a clip; nothing is kept between calls.

        Args:
            inputs: T frames of B samples, and the memory of what came before, if any.
            data_samples: labels and metainfo of the B keyframes.
            mode: ``loss`` (losses by name), ``predict`` (samples with predictions), ``tensor`` (B_t and memory), or
                ``stream_loss`` / ``stream_predict``: the same with the new memory, (result, memory).
        """
        memory = self.memory_before(inputs)
        keyframe = inputs.frames[-1]
        features = self.image_features(keyframe)
        bev = self.bev_of(features, keyframe, memory)
        tokens = [sample.metainfo.get("token", "") for sample in data_samples or ()]
        memory = push_memory(memory, bev.features.detach(), keyframe.motion, self.memory_frames, tokens)
        if self.temporal_fusion is not None:
            bev = self.temporal_fusion(bev, memory)
        if mode == "tensor":
            return bev, memory
        seen_by_heads = bev if self.bev_neck is None else self.bev_neck(bev)
        seen_by_heads = replace(seen_by_heads, history=memory, image_features=tuple(features))
        if mode in ("loss", "stream_loss"):
            result = self.losses(seen_by_heads, data_samples, keyframe)
        elif mode in ("predict", "stream_predict"):
            result = self.predictions(seen_by_heads, data_samples)
            self.set_image_predictions(features, result, keyframe)
        else:
            raise ValueError(f"unknown mode {mode!r}")
        return (result, memory) if mode.startswith("stream_") else result

    def memory_before(self, clip: Clip) -> BEVMemory | None:
        """The memory that the clip's last frame meets.

        Earlier frames run in evaluation mode without gradient, as in docs/reference.md 4.5, Training queue.
        """
        memory = clip.memory
        for frame in clip.frames[:-1]:
            with torch.no_grad(), evaluating(self):
                bev = self.bev_of(self.image_features(frame), frame, memory)
            memory = push_memory(memory, bev.features, frame.motion, self.memory_frames)
        return memory

    def bev_of(self, features: Sequence[Tensor], frame: Frame, memory: BEVMemory | None) -> BEVFeatures:
        """The encoder's B_t of one frame from its image features."""
        return self.encoder(features[: self.bev_levels], frame, memory if self.temporal_fusion is None else None)

    def image_features(self, frame: Frame) -> list[Tensor]:
        """A frame's images (B, N, 3, H, W), and its sweeps for a video backbone, to levels (B, N, C, h, w).

        Raises:
            ValueError: the video backbone's sweeps are not there, or not as many as it takes.
        """
        images, wanted = frame.images, getattr(self.backbone, "num_sweeps", 0)
        batch = images.shape[:2]
        if wanted:
            there = 0 if frame.sweeps is None else frame.sweeps.shape[1]
            if there != wanted:
                reason = f"takes {wanted} sweeps a camera, the frame has {there}"
                raise ValueError(f"{type(self.backbone).__name__} {reason}; set num_sweeps={wanted} in the pipeline")
            images = torch.cat([frame.sweeps, images.unsqueeze(1)], dim=1).transpose(1, 2)
        features = self.backbone(images.flatten(0, 1))
        require_declared(features, self.backbone)
        if self.neck is not None:
            features = self.neck(features)
        return [level.unflatten(0, batch) for level in features]

    def losses(self, bev: BEVFeatures, samples: Sequence[BEVDataSample], keyframe: Frame) -> dict[str, Tensor]:
        """Losses of every head, those on image features included, as ``<head>.<loss>``, weighted and balanced."""
        losses = {name: head.loss(head(bev), samples) for name, head in self.heads.items()}
        for name, head in self.image_heads.items():
            losses[name] = head.loss(head(bev.image_features), samples, keyframe.rig)
        shared = None if self.shared_weight is None else self.get_parameter(self.shared_weight)
        return self.balancing(losses, shared)

    def predictions(self, bev: BEVFeatures, samples: Sequence[BEVDataSample]) -> list[BEVDataSample]:
        """Copies of the samples with every head's predictions set on them; heads after those they require."""
        results = [sample.new() for sample in samples]
        for head in self.heads_in_order():
            for result, fields in zip(results, head.predict(head(bev), results), strict=True):
                for name, value in fields.items():
                    if name == "pred_rasters" and "pred_rasters" in result:
                        value = {**result.pred_rasters, **value}
                    result.set_field(value, name)
        return results

    def set_image_predictions(
        self, features: Sequence[Tensor], results: Sequence[BEVDataSample], keyframe: Frame
    ) -> None:
        """Set on the results what those heads on image features that have a ``predict(raw, rig)`` predict."""
        for head in self.image_heads.values():
            if hasattr(head, "predict"):
                for result, fields in zip(results, head.predict(head(features), keyframe.rig), strict=True):
                    for name, value in fields.items():
                        result.set_field(value, name)

    def heads_in_order(self) -> list[BEVHead]:
        """The heads, each after those it requires.

        Raises:
            ValueError: a required head is not there, or heads require each other in a circle.
        """
        done: dict[str, BEVHead] = {}
        waiting = dict(self.heads.items())
        while waiting:
            ready = [name for name, head in waiting.items() if set(head.requires) <= set(done)]
            if not ready:
                raise ValueError(self._unmet(waiting))
            for name in ready:
                done[name] = waiting.pop(name)
        return list(done.values())

    def _unmet(self, waiting: Mapping[str, BEVHead]) -> str:
        """One line on heads that cannot be put in order."""
        for name, head in waiting.items():
            for absent in (required for required in head.requires if required not in self.heads):
                near = difflib.get_close_matches(absent, list(self.heads), n=1)
                hint = f"did you mean '{near[0]}'?" if near else f"add it to the config, or leave '{name}' out"
                return f"head '{name}' requires head '{absent}', which is not there; {hint}"
        return f"heads {sorted(waiting)} require each other in a circle"

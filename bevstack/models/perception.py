"""The whole way in one place: images -> backbone -> neck -> BEV encoder -> B_t -> heads."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import ItemsView, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from mmengine.model import BaseModel, ModuleDict
from torch import Tensor, nn

from bevstack.losses.balancing import LossBalancing, shared_weight_name
from bevstack.models.backbones.base import fitted_config, require_declared
from bevstack.models.bev.alignment import WarpAlignment
from bevstack.models.bev.memory import push_memory
from bevstack.models.freezing import freeze, keep_evaluating
from bevstack.models.heads.base import BEVHead, BoxHead, ImageHead
from bevstack.models.history import HistoryFrames
from bevstack.models.training_form import TrainingForm
from bevstack.registry import MODELS
from bevstack.structures import AlignedHistory, BEVDataSample, BEVFeatures, BEVMemory, CameraRig, Clip, Frame

MODES = ("tensor", "loss", "predict", "stream_loss", "stream_predict")


@MODELS.register_module()
class BEVPerception(BaseModel):
    """Multi-camera perception: one shared trunk makes B_t, any number of heads read it.

    Args:
        backbone: (B * N, 3, H, W) images to a list of feature maps; or a video backbone, which says so by an attribute
            ``num_sweeps`` S > 0 and gets (B * N, S + 1, 3, H, W): what each camera took just before, oldest first, and
            the keyframe's image at the end.
        encoder: feature maps, a frame and the past frames to B_t (:class:`bevstack.models.bev.BEVFormerEncoder`).
        heads: by name; each a :class:`BEVHead`. Any can be left out. Where a head takes ``history_channels`` and its
            config does not give them, it gets the encoder's.
        neck: feature maps to feature maps, or None; what its config leaves out of ``in_channels`` and ``in_strides`` is
            what the backbone declares (:mod:`bevstack.models.backbones.base`).
        bev_neck: B_t to the B_t that the heads see, or None; the memory holds what the encoder made.
        temporal_fusion: joins the encoder's B_t with the past frames', before ``bev_neck``
            (:class:`bevstack.models.bev.TemporalConcatenation`); the encoder then makes every frame alone. None leaves
            the history to the encoder.
        image_heads: by name; each a :class:`bevstack.models.heads.ImageHead`, on the image features of the keyframe.
        bev_levels: how many levels of the image features the encoder gets, the finest first; all where not given.
        loss_weights: by head name, 1 where not named.
        loss_balancing: rule of :mod:`bevstack.losses.balancing` that weighs the heads' losses on top of
            ``loss_weights``; without one these alone count, and no weights are logged.
        frozen: names of parts that training leaves bit for bit as they are, as ``backbone`` or ``heads.detection``
            (:func:`bevstack.models.freezing.freeze`).
        alignment: brings past frames into the current one, once for all that read them
            (:class:`bevstack.models.bev.WarpAlignment` where not given). The encoder alone takes one that leaves a
            shift to its attention.
        history: settings by which a clip's past frames are remembered (:class:`bevstack.models.history.HistoryFrames`).
        data_preprocessor: collated data to a :class:`Clip` and samples.

    Attributes:
        config, classes: of a model that was loaded (:func:`bevstack.load_model`): where it comes from, and the names of
            its labels.
        memory_frames: past frames that the memory keeps: as many as the encoder, the fusion and the heads read.
    """

    config: Any = None
    classes: tuple[str, ...] = ()

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
        alignment: Mapping | None = None,
        history: Mapping | None = None,
        data_preprocessor: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self._training_form, self.history = TrainingForm(), HistoryFrames(**(history or {}))
        self.neck = None if neck is None else MODELS.build(fitted_config(neck, self.backbone))
        self.encoder = MODELS.build(encoder)
        self.bev_neck = None if bev_neck is None else MODELS.build(bev_neck)
        self.heads = ModuleDict({name: self._built_head(name, head) for name, head in heads.items()})
        self.temporal_fusion = None if temporal_fusion is None else MODELS.build(temporal_fusion)
        self.image_heads = ModuleDict({name: _image_head(name, head) for name, head in (image_heads or {}).items()})
        self.bev_levels = bev_levels
        encoder_frames = 0 if self.temporal_fusion is not None else getattr(self.encoder, "history_frames", 0)
        other_frames = [getattr(self.temporal_fusion, "history_frames", 0)]
        other_frames += [head.history_frames for head in self.heads.values()]
        self.memory_frames = max(encoder_frames, *other_frames)
        self.alignment = WarpAlignment() if alignment is None else MODELS.build(alignment)
        aligned_apart = max(other_frames) > 0 and getattr(self.alignment, "leaves_shift", False)
        self.alignment_of_others = WarpAlignment() if aligned_apart else None
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
        head = MODELS.build(with_history_channels(config, self.encoder))
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

    def step(self, frame: Frame, memory: BEVMemory | None = None) -> tuple[BEVFeatures, BEVMemory | None]:
        """One moment: images and what is remembered, to B_t and what is to be remembered. The model keeps nothing.

        Args:
            frame: B samples of N cameras.
            memory: what the step of the previous frame returned; None at a stream's start.

        Returns:
            B_t as the heads read it, and the memory for the next frame; None where nothing in the model looks back.
        """
        features = self.image_features(frame)
        past = None if memory is None else memory.moved(frame.motion)
        encoded, history = self.encoded(features, frame, past)
        bev = encoded if self.temporal_fusion is None else self.temporal_fusion(encoded, history)
        bev = bev if self.bev_neck is None else self.bev_neck(bev)
        bev = replace(
            bev,
            encoded=BEVFeatures(encoded.features.detach(), encoded.grid),
            history=history,
            image_features=tuple(features),
            rig=frame.rig,
        )
        return bev, push_memory(past, encoded, self.memory_frames)

    def encoded(
        self, features: Sequence[Tensor], frame: Frame, past: BEVMemory | None
    ) -> tuple[BEVFeatures, AlignedHistory | None]:
        """The encoder's B_t of a frame, and the past frames as fusion and heads read them.

        Args:
            features: levels (B, N, C, h, w) of the frame's images.
            frame: its rig and motion.
            past: the memory as this frame sees it (:meth:`BEVMemory.moved`), or None.
        """
        history = None if past is None else self.alignment(past, frame.motion)
        read = history if self.temporal_fusion is None else None
        encoded = self.encoder(features[: self.bev_levels], frame, read)
        if past is not None and self.alignment_of_others is not None:
            history = self.alignment_of_others(past, frame.motion)
        return encoded, history

    def forward(
        self, inputs: Clip, data_samples: Sequence[BEVDataSample] | None = None, mode: str = "tensor"
    ) -> object:
        """mmengine's way in: the steps of a clip, and what is asked of the last one.

        Args:
            inputs: T frames of B samples, and the memory of what came before, if any.
            data_samples: labels and metainfo of the B keyframes.
            mode: ``loss`` (losses by name), ``predict`` (samples with predictions), ``tensor`` (B_t and memory), or
                ``stream_loss`` / ``stream_predict``: the same with the new memory, (result, memory).

        Raises:
            ValueError: another mode, or one that needs samples, without them.
        """
        if mode not in MODES:
            raise ValueError(f"unknown mode {mode!r}; there are {', '.join(MODES)}")
        memory = self.history(self, inputs.frames[:-1], inputs.memory)
        bev, memory = self.step(inputs.frames[-1], memory)
        if mode == "tensor":
            return bev, memory
        if data_samples is None:
            raise ValueError(f"mode {mode!r} needs data_samples: the labels, or what the predictions are set on")
        ask = self.losses if mode.endswith("loss") else self.predictions
        result = ask(bev, data_samples)
        return (result, memory) if mode.startswith("stream_") else result

    def backbone_features(self, images: Tensor) -> Sequence[Tensor]:
        """What the backbone makes of (B, 3, H, W) images, in its form for training."""
        return self._training_form(self.backbone, images)

    def image_features(self, frame: Frame) -> list[Tensor]:
        """A frame's images (B, N, 3, H, W), and its sweeps for a video backbone, to levels (B, N, C, h, w).

        Where the frame has the backbone's features already, the neck begins with them.

        Raises:
            ValueError: the video backbone's sweeps are not there, or not as many as it takes.
        """
        images, wanted = frame.images, getattr(self.backbone, "num_sweeps", 0)
        batch = images.shape[:2]
        if wanted:
            sweeps = frame.sweeps
            if sweeps is None or sweeps.shape[1] != wanted:
                reason = f"takes {wanted} sweeps a camera, the frame has {0 if sweeps is None else sweeps.shape[1]}"
                raise ValueError(f"{type(self.backbone).__name__} {reason}; set num_sweeps={wanted} in the pipeline")
            images = torch.cat([sweeps, images.unsqueeze(1)], dim=1).transpose(1, 2)
        if frame.features is None:
            features = self.backbone_features(images.flatten(0, 1))
        else:
            features = [level.flatten(0, 1) for level in frame.features]
        require_declared(features, self.backbone)
        if self.neck is not None:
            features = self.neck(features)
        return [level.unflatten(0, batch) for level in features]

    def losses(self, bev: BEVFeatures, samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Losses of every head on a :meth:`step`'s B_t, those on image features included, weighted and balanced.

        Args:
            bev: B_t (B, C, Y, X) with the image features (B, N, C, h, w) and rig that it was made of.
            samples: B, with the labels that the heads read.

        Returns:
            Scalars as ``<head>.<loss>``, and what the balancing logs.
        """
        losses = {name: head.loss(raw_of(head, bev), samples) for name, head in self._bev_heads()}
        for name, image_head in self._image_heads():
            losses[name] = image_head.loss(image_head(bev.image_features), samples, rig_of(bev))
        shared = None if self.shared_weight is None else self.get_parameter(self.shared_weight)
        return self.balancing(losses, shared)

    def predictions(self, bev: BEVFeatures, samples: Sequence[BEVDataSample]) -> list[BEVDataSample]:
        """Copies of the samples with every head's predictions of a :meth:`step` set on them.

        Heads come after those they require, those on image features last.
        """
        results = [sample.new() for sample in samples]
        for head in self.heads_in_order():
            set_fields(results, head.predict(raw_of(head, bev), results))
        for _, image_head in self._image_heads():
            if image_head.predicts:
                set_fields(results, image_head.predict(image_head(bev.image_features), rig_of(bev)))
        return results

    def _bev_heads(self) -> ItemsView[str, BEVHead]:
        """``heads`` with their type, which ``nn.ModuleDict`` does not know; :meth:`_built_head` has seen to it."""
        return cast("ItemsView[str, BEVHead]", self.heads.items())

    def _image_heads(self) -> ItemsView[str, ImageHead]:
        """``image_heads`` with their type, which ``nn.ModuleDict`` does not know."""
        return cast("ItemsView[str, ImageHead]", self.image_heads.items())

    def heads_in_order(self) -> list[BEVHead]:
        """The heads, each after those it requires.

        Raises:
            ValueError: a required head is not there, or heads require each other in a circle.
        """
        done: dict[str, BEVHead] = {}
        waiting = dict(self._bev_heads())
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


def with_history_channels(config: Mapping, encoder: nn.Module) -> dict:
    """A head's config with the encoder's channels as ``history_channels``, where the head takes and lacks them."""
    component = MODELS.get(config["type"]) if isinstance(config["type"], str) else config["type"]
    taken = {} if component is None else inspect.signature(component).parameters  # the builder tells unknown names
    missing = "history_channels" in taken and config.get("history_channels") is None
    return {**config, "history_channels": encoder.channels} if missing else dict(config)


def _image_head(name: str, config: Mapping) -> ImageHead:
    """The head on image features that a config names."""
    head = MODELS.build(config)
    if not isinstance(head, ImageHead):
        reason = f"{type(head).__name__} is no head on images; derive it from bevstack.models.heads.ImageHead"
        raise TypeError(f"image head '{name}': {reason}")
    return head


def rig_of(bev: BEVFeatures) -> CameraRig:
    """The rig of the images that B_t was made of.

    Raises:
        ValueError: B_t does not come from a step.
    """
    if bev.rig is None:
        raise ValueError("heads on images read bev.rig, and there is none; take what BEVPerception.step() gives")
    return bev.rig


def raw_of(head: BEVHead, bev: BEVFeatures) -> dict[str, Tensor]:
    """What a head's ``loss`` and ``predict`` read: its raw outputs, or what a head on boxes makes of B_t.

    Args:
        bev: B_t (B, C, Y, X), with what it was made of.

    Returns:
        Named tensors (B, ...); a head may put its decoder layers first.
    """
    return head.encode(bev) if isinstance(head, BoxHead) else head(bev)


def set_fields(samples: Sequence[BEVDataSample], predicted: Sequence[Mapping[str, Any]]) -> None:
    """Set what a head predicts on the samples, one mapping a sample; rasters are added to those of other heads."""
    for sample, fields in zip(samples, predicted, strict=True):
        for name, value in fields.items():
            if name == "pred_rasters" and "pred_rasters" in sample:
                value = {**sample.pred_rasters, **value}
            sample.set_field(value, name)

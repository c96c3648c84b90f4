"""Samplers: shuffled clips, streams of concurrent scenes for training, whole scenes for evaluation.

Each gives :class:`bevstack.datasets.clips.ClipIndex`, so that workers seed a clip by its epoch. The order depends on
(seed, epoch) alone; ``start_at(n)`` skips the first n indices of the next pass, for resuming in the middle of an epoch.
All ask their dataset for ``len``, ``stream_starts`` and ``scene_rows``
(:class:`bevstack.datasets.base.BEVDataset`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np
from mmengine.dist import get_dist_info, sync_random_seed
from torch.utils.data import Sampler

from bevstack.datasets.base import BEVDataset
from bevstack.datasets.clips import ClipIndex
from bevstack.registry import DATA_SAMPLERS

Number = TypeVar("Number", bound=int)


class _EpochSampler(Sampler):
    """What the samplers share: rank, seed, epoch, and a start in the middle of an epoch."""

    def __init__(self, dataset: BEVDataset, seed: int | None) -> None:
        self.dataset = dataset
        self.rank, self.world_size = get_dist_info()
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self._start = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        self.epoch = epoch

    def start_at(self, num_indices: int) -> None:
        """Leave out the first ``num_indices`` of this rank in the next pass (and in that one only)."""
        if not 0 <= num_indices <= len(self):
            raise ValueError(f"start_at: {num_indices} is outside an epoch of {len(self)} indices")
        self._start = num_indices

    def __iter__(self) -> Iterator[ClipIndex]:
        start, self._start = self._start, 0
        epoch = self.epoch
        return (ClipIndex(i, epoch) for i in self.order(epoch)[start:])

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} must say how many samples it gives")

    def order(self, epoch: int) -> list[int]:
        """This rank's sample numbers in the order of ``epoch``."""
        raise TypeError(f"{type(self).__name__} must say in which order it gives samples")


@DATA_SAMPLERS.register_module()
class ClipSampler(_EpochSampler):
    """Single clips, shuffled anew each epoch (or in order), dealt out to the ranks in turn.

    Args:
        dataset: to sample from.
        shuffle: whether the order is random.
        seed: of the order; None draws one that all ranks share.
        round_up: whether ranks get equally many by repeating the first samples; without it some get one fewer.
    """

    def __init__(
        self, dataset: BEVDataset, shuffle: bool = True, seed: int | None = None, round_up: bool = True
    ) -> None:
        super().__init__(dataset, seed)
        self.shuffle, self.round_up = shuffle, round_up

    def __len__(self) -> int:
        rest = self.world_size - 1 if self.round_up else self.world_size - 1 - self.rank
        return (len(self.dataset) + rest) // self.world_size

    def order(self, epoch: int) -> list[int]:
        """This rank's share of the epoch's permutation."""
        total = len(self.dataset)
        order = np.arange(total)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(total)
        if self.round_up and total:
            order = np.resize(order, len(self) * self.world_size)
        return order[self.rank :: self.world_size].tolist()


def streams_of(dataset: BEVDataset) -> list[np.ndarray]:
    """Sample numbers of each stream (a scene, or the part of one between gaps), in order of time."""
    starts = np.flatnonzero(dataset.stream_starts)
    return np.split(np.arange(len(dataset)), starts[1:]) if len(starts) else []


@DATA_SAMPLERS.register_module()
class StreamingSampler(_EpochSampler):
    """Concurrent streams for training with a memory that is carried from batch to batch.

    Batch slot b of a rank walks through its own streams frame by frame: consecutive ``batch_size`` indices are one
    batch, and index b of the next batch continues index b of this one, or starts another stream (the sample's
    ``prev_token`` is then not the token before it). Streams are shuffled each epoch and dealt to whichever slot is free
    first, over all ranks. An epoch lasts as many batches as the samples fill; slots that run out early begin further
    streams, and what then lies beyond the epoch's end is left out (another part in every epoch).

    Args:
        dataset: to sample from.
        batch_size: the loader's batch size on one rank; must be that of the data loader.
        seed: of the order; None draws one that all ranks share.
        max_stream_length: streams are cut into pieces of at most so many frames, which are shuffled like streams, so
            that memories start anew more often. None keeps streams whole.
        balance: how often pieces with rare classes come: a class that is in a part f of the samples lets its pieces
            come max(1, sqrt(balance / f)) times as often (Gupta et al. 2019, section 4.1), by the rarest class of a
            piece. 0 leaves all alike. An epoch stays as long, so that other pieces come less often.

    Raises:
        ValueError: a number makes no sense.
    """

    def __init__(
        self,
        dataset: BEVDataset,
        batch_size: int,
        seed: int | None = None,
        max_stream_length: int | None = None,
        balance: float = 0.0,
    ) -> None:
        super().__init__(dataset, seed)
        if not 0 <= balance <= 1:
            raise ValueError(f"balance: {balance} is a part of the samples, between 0 and 1")
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        if max_stream_length is not None and max_stream_length < 1:
            raise ValueError(f"max_stream_length: {max_stream_length} must be at least 1")
        self.batch_size, self.max_stream_length = batch_size, max_stream_length
        self._pieces = [
            stream[low : low + (max_stream_length or len(stream))]
            for stream in streams_of(dataset)
            for low in range(0, len(stream), max_stream_length or len(stream))
        ]
        often = repeat_factors(dataset, balance) if balance else np.ones(len(dataset))
        self._times = np.array([often[piece].max() for piece in self._pieces])

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same on every rank."""
        return -(-len(self.dataset) // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.steps_per_epoch * self.batch_size

    def order(self, epoch: int) -> list[int]:
        """This rank's batches of the epoch, one after the other."""
        rng = np.random.default_rng([self.seed, epoch])
        slots: list[list[np.ndarray]] = [[] for _ in range(self.batch_size * self.world_size)]
        filled = np.zeros(len(slots), dtype=np.int64)
        while filled.min() < self.steps_per_epoch:
            for piece in self._shuffled(rng):
                slot = int(filled.argmin())
                slots[slot].append(piece)
                filled[slot] += len(piece)
        mine = slots[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        columns = [np.concatenate(pieces)[: self.steps_per_epoch] for pieces in mine]
        return np.stack(columns, axis=1).ravel().tolist()

    def _shuffled(self, rng: np.random.Generator) -> list[np.ndarray]:
        if self._times.max(initial=1.0) == 1:
            return [self._pieces[i] for i in rng.permutation(len(self._pieces))]
        whole = np.floor(self._times).astype(int)
        copies = whole + (rng.random(len(whole)) < self._times - whole)  # as often on average as asked
        return [self._pieces[i] for i in rng.permutation(np.repeat(np.arange(len(copies)), copies))]


def repeat_factors(dataset: BEVDataset, balance: float) -> np.ndarray:
    """(n,) how often each sample should come, by its rarest class: max(1, sqrt(balance / f)), f the part of the samples
    that have the class. Reads the objects of every sample."""
    labels = [np.unique(dataset.clip(i).objects.labels) for i in range(len(dataset))]
    counts = np.bincount(np.concatenate([np.zeros(0, np.int64), *(own[own >= 0] for own in labels)]).astype(int))
    factors = np.maximum(1.0, np.sqrt(balance * max(len(dataset), 1) / np.maximum(counts, 1)))
    return np.array([factors[own[own >= 0]].max(initial=1.0) for own in labels])


@DATA_SAMPLERS.register_module()
class SceneShardedSampler(_EpochSampler):
    """Evaluation: whole scenes to each rank, in order; over all ranks every sample exactly once, none repeated.

    Scenes go to the rank that has the fewest samples so far, the longest first, so ranks end at about the same time;
    they may hold different numbers of samples. Batches of it are made by :class:`SceneBatchSampler`.

    Args:
        dataset: to sample from.
        seed: unused, as nothing is random; taken because mmengine's Runner hands one to every sampler.
    """

    def __init__(self, dataset: BEVDataset, seed: int | None = None) -> None:
        super().__init__(dataset, seed=0 if seed is None else seed)
        scenes, sizes = np.unique(dataset.scene_rows, return_counts=True)
        load = np.zeros(self.world_size, dtype=np.int64)
        mine = []
        for scene in np.argsort(-sizes, kind="stable"):
            rank = int(load.argmin())
            load[rank] += sizes[scene]
            if rank == self.rank:
                mine.append(scenes[scene])
        self._order = np.flatnonzero(np.isin(dataset.scene_rows, mine)).tolist()

    def __len__(self) -> int:
        return len(self._order)

    def order(self, epoch: int) -> list[int]:
        """This rank's sample numbers, scene by scene; the same in every epoch."""
        return self._order


@DATA_SAMPLERS.register_module()
class SceneBatchSampler(Sampler):
    """Evaluation in batches of concurrent streams: every sample once, each in the batch right after its predecessor's.

    Batches hold the next sample of each of ``batch_size`` streams; a stream that ends makes room for the next one.
    Towards the end, when no stream is left to begin, batches get smaller. With ``batch_size`` 1 the sampler's order.

    Args:
        sampler: of whole streams in order (:class:`SceneShardedSampler`).
        batch_size: largest number of samples in a batch.
    """

    def __init__(self, sampler: _EpochSampler, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: {batch_size} must be at least 1")
        self.sampler, self.batch_size = sampler, batch_size
        self._length = sum(1 for _ in self._rows(sampler.order(sampler.epoch)))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[ClipIndex]]:
        return self._rows(self.sampler)

    def _rows(self, indices: Iterable[Number]) -> Iterator[list[Number]]:
        streams: deque[deque[Number]] = deque()
        for index in indices:
            if not streams or self.sampler.dataset.stream_starts[index]:
                streams.append(deque())
            streams[-1].append(index)
        slots: list[deque[Number]] = []
        while streams or slots:
            while streams and len(slots) < self.batch_size:
                slots.append(streams.popleft())
            yield [slot.popleft() for slot in slots]
            slots = [slot for slot in slots if slot]

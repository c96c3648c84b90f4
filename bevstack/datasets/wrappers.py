"""Datasets made of others: repeated, joined, balanced by class. Streams go on in them as in what they are made of.

mmengine's wrappers of the same names ask a dataset for other things and know no streams. Every copy of a sample is
augmented by itself; where memory is carried, all samples of one copy of a stream are augmented as that copy is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bevstack.datasets.base import BEVDataset, CameraRecords, ClipRecord, ObjectRecords, Taxonomy
from bevstack.datasets.clips import ClipIndex
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.registry import DATASETS


def innermost_configs(dataset: Any) -> Iterator[Any]:
    """The configs of the datasets that a dataset's config is made of: itself, where it wraps none."""
    inner = [dataset["dataset"]] if "dataset" in dataset else dataset.get("datasets", ())
    if not inner:
        yield dataset
    for part in inner:
        yield from innermost_configs(part)


class _ChosenSamples(Dataset):
    """Samples of other datasets in a new order, which may name one several times.

    It answers as :class:`bevstack.datasets.base.BEVDataset`. Most of the metainfo, taxonomy and source are the first
    dataset's; what is asked of a token or a location, the first dataset that has it answers.

    Args:
        datasets: built, or as configs; all with the same classes, and their cameras in the same order.

    Raises:
        InputError: there is none, their classes differ, or a camera has another number in one than in the first.
    """

    def __init__(self, datasets: Sequence[BEVDataset | Mapping]) -> None:
        self.datasets: list[BEVDataset] = [DATASETS.build(dict(d)) if isinstance(d, Mapping) else d for d in datasets]
        if not self.datasets:
            raise InputError(type(self).__name__, "datasets", "name at least one")
        lists = [tuple(dataset.metainfo.get("classes", ())) for dataset in self.datasets]
        for number, classes in enumerate(lists):
            if classes != lists[0]:
                reason = f"{list(classes)}, but datasets.0 has {list(lists[0])}: give all the same list"
                raise InputError(type(self).__name__, f"datasets.{number}.classes", reason)
        self._refuse_other_cameras()
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        pieces = [np.stack([np.full(len(d), n), np.arange(len(d))], axis=1) for n, d in enumerate(self.datasets)]
        starts = [np.asarray(dataset.stream_starts) for dataset in self.datasets]
        self._choose(np.concatenate(pieces), np.concatenate(starts), np.zeros(sum(map(len, pieces)), dtype=np.int64))

    def _refuse_other_cameras(self) -> None:
        """A model knows cameras by their numbers; datasets that do not name theirs are taken."""
        first, *others = (list(dataset.metainfo.get("cameras", ())) for dataset in self.datasets)
        for number, cameras in enumerate(others, start=1):
            if any(name in first and first.index(name) != place for place, name in enumerate(cameras)):
                reason = f"{cameras}, but datasets.0 has {first}: give all the same order"
                raise InputError(type(self).__name__, f"datasets.{number}.cameras", reason)

    def _choose(self, rows: np.ndarray, starts: np.ndarray, copies: np.ndarray) -> None:
        """Set what the samples are: (n, 2) dataset and number in it, (n,) bool stream starts, (n,) number of copy."""
        self._rows, self._starts, self._copies = rows, starts, copies
        self._num_copies = int(copies.max(initial=0)) + 1

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> Any:
        dataset, inner = self._sample(i)
        return dataset[inner]

    def clip(self, i: int) -> ClipRecord:
        """Sample i and the frames before it, as its dataset gives them."""
        dataset, inner = self._sample(i)
        return dataset.clip(inner)

    def _sample(self, i: int) -> tuple[BEVDataset, ClipIndex]:
        epoch = i.epoch if isinstance(i, ClipIndex) else int(self._epoch[0])
        dataset, number = self._rows[i].tolist()
        return self.datasets[dataset], ClipIndex(number, epoch * self._num_copies + int(self._copies[i]))

    @property
    def metainfo(self) -> dict[str, Any]:
        """Of the first dataset, whose classes are those of all; where they are of several splits, versions or roots,
        these are told together, which no score of one split takes for its own."""
        parts = [dataset.metainfo for dataset in self.datasets]
        meta = dict(parts[0])
        for field in ("split", "version", "data_root"):
            values = list(dict.fromkeys(str(part[field]) for part in parts if field in part))
            if len(values) > 1:
                meta[field] = " + ".join(values)
        if all("num_annotated" in part for part in parts):
            meta["num_annotated"] = sum(part["num_annotated"] for part in parts)
        return meta

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in order."""
        return tuple(self.metainfo["classes"])

    @property
    def source(self) -> Path:
        """Where the first dataset was read from, for messages."""
        return self.datasets[0].source

    @property
    def scene_rows(self) -> np.ndarray:
        """(n,) number of each sample's scene; scenes of different datasets and copies are different ones."""
        scenes = [np.asarray(dataset.scene_rows) for dataset in self.datasets]
        own = np.array([scenes[dataset][number] for dataset, number in self._rows.tolist()], dtype=np.int64)
        keys = np.stack([self._rows[:, 0], self._copies, own], axis=1)
        return np.unique(keys, axis=0, return_inverse=True)[1].ravel()

    @property
    def stream_starts(self) -> np.ndarray:
        """(n,) bool: a stream, or a piece of one, starts with the sample."""
        return self._starts

    @property
    def taxonomy(self) -> Taxonomy:
        """Other names that the first dataset's format brings."""
        return self.datasets[0].taxonomy

    @property
    def scene_names(self) -> list[str]:
        """Name of each sample's scene."""
        names = [dataset.scene_names for dataset in self.datasets]
        return [names[dataset][number] for dataset, number in self._rows.tolist()]

    @property
    def locations(self) -> tuple[str, ...]:
        """The places that the datasets' scenes lie in, each once."""
        return tuple(dict.fromkeys(place for dataset in self.datasets for place in dataset.locations))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds clips whose index carries none."""
        self._epoch[0] = epoch

    def truth(self, token: str) -> ObjectRecords:
        """All annotated objects at a sample (:meth:`bevstack.datasets.base.BEVDataset.truth`)."""
        return self._dataset_of(token).truth(token)

    def camera_views(self, token: str) -> CameraRecords:
        """The cameras of a sample with their stored images."""
        return self._dataset_of(token).camera_views(token)

    def earlier_tokens(self, token: str, count: int) -> list[str]:
        """Tokens of up to ``count`` samples before one in its stream, the newest first."""
        return self._dataset_of(token).earlier_tokens(token, count)

    def past_centers(self, tokens: Sequence[str], instance_ids: np.ndarray) -> np.ndarray:
        """(G, M, 2) places of objects (:meth:`bevstack.datasets.base.BEVDataset.past_centers`)."""
        return self._dataset_of(tokens[0]).past_centers(tokens, instance_ids)

    def has_map(self, location: str) -> bool:
        """Whether there is a map of a location."""
        return self._dataset_at(location).has_map(location)

    def require_map(self, location: str) -> None:
        """Raise :class:`InputError` where there is no map of a location."""
        self._dataset_at(location).require_map(location)

    def map_raster(self, location: str, global_from_bev: np.ndarray, grid: BEVGrid) -> np.ndarray:
        """(K, Y, X) the map around a pose (:meth:`bevstack.datasets.base.BEVDataset.map_raster`)."""
        return self._dataset_at(location).map_raster(location, global_from_bev, grid)

    def _dataset_of(self, token: str) -> BEVDataset:
        for dataset in self.datasets[:-1]:
            try:
                dataset.earlier_tokens(token, 0)
            except KeyError:
                continue
            return dataset
        return self.datasets[-1]

    def _dataset_at(self, location: str) -> BEVDataset:
        return next((dataset for dataset in self.datasets if location in dataset.locations), self.datasets[0])


@DATASETS.register_module()
class ConcatDataset(_ChosenSamples):
    """Several datasets one after the other.

    Args:
        datasets: two or more, with the same classes.
    """


@DATASETS.register_module()
class RepeatDataset(_ChosenSamples):
    """A dataset several times in an epoch.

    Args:
        dataset: to repeat.
        times: how often.

    Raises:
        ValueError: ``times`` is below 1.
    """

    def __init__(self, dataset: BEVDataset | Mapping, times: int) -> None:
        if times < 1:
            raise ValueError(f"times: {times} must be at least 1")
        super().__init__([dataset])
        copies = np.repeat(np.arange(times), len(self))
        self._choose(np.tile(self._rows, (times, 1)), np.tile(self.stream_starts, times), copies)


@DATASETS.register_module()
class CBGSDataset(_ChosenSamples):
    """Class-balanced grouping and sampling: pieces with rare classes come more often (Zhu et al. 2019, section 3.1).

    Of the n_c pieces that show class c, n_c * r_c are drawn with replacement, r_c such that every class would be drawn
    equally often; a piece that shows several classes is drawn for each of them. So the set grows, about as the paper's.

    Args:
        dataset: whose objects are counted.
        piece_length: samples that stay together, cut from streams: 1 for single clips, the sampler's
            ``max_stream_length`` for streams.
        seed: of the draws.

    Raises:
        ValueError: ``piece_length`` is below 1.
    """

    def __init__(self, dataset: BEVDataset | Mapping, piece_length: int = 1, seed: int = 0) -> None:
        if piece_length < 1:
            raise ValueError(f"piece_length: {piece_length} must be at least 1")
        super().__init__([dataset])
        (inner,) = self.datasets
        starts = np.flatnonzero(self.stream_starts)
        streams = np.split(np.arange(len(inner)), starts[1:])
        pieces = [s[low : low + piece_length] for s in streams for low in range(0, len(s), piece_length)]
        shows = np.zeros((len(pieces), len(self.classes)), dtype=bool)
        for piece, members in enumerate(pieces):
            for i in members.tolist():
                shows[piece, np.asarray(inner.clip(i).objects.labels)] = True
        drawn = np.sort(np.concatenate([np.empty(0, dtype=np.int64), *_draws(shows, np.random.default_rng(seed))]))
        seen: dict[int, int] = {}
        rows, begins, copies = [], [], []
        for piece in drawn.tolist():
            copy = seen[piece] = seen.get(piece, -1) + 1
            members = pieces[piece]
            rows.append(self._rows[members])
            begins.append(np.arange(len(members)) == 0)
            copies.append(np.full(len(members), copy))
        if rows:
            self._choose(np.concatenate(rows), np.concatenate(begins), np.concatenate(copies))


def _draws(shows: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Numbers of the pieces drawn for each class, from (pieces, K) bool which classes each shows."""
    counts = shows.sum(axis=0)
    there = np.flatnonzero(counts)
    share = counts.sum() / max(len(there), 1)
    return [rng.choice(np.flatnonzero(shows[:, c]), size=max(round(share), 1)) for c in there.tolist()]

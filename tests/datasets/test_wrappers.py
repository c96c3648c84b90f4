"""Repeated, joined and class-balanced datasets keep the streams of what they are made of."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bevstack.datasets.base import BEVDataset
from bevstack.datasets.clips import ClipIndex
from bevstack.datasets.samplers import StreamingSampler, streams_of
from bevstack.datasets.wrappers import CBGSDataset, ConcatDataset, RepeatDataset
from bevstack.errors import InputError


class Scenes:
    """Scenes of some lengths; sample i answers (name, i, epoch), its objects' labels are those given."""

    def __init__(self, name: str, lengths: tuple[int, ...], labels=None, classes=("car", "bus")) -> None:
        self.name, self.classes, self.metainfo = name, classes, {"classes": classes}
        self.scene_rows = np.repeat(np.arange(len(lengths)), lengths)
        self.stream_starts = np.diff(self.scene_rows, prepend=-1) > 0
        self.labels = labels or [[0]] * len(self.scene_rows)

    def __len__(self) -> int:
        return len(self.scene_rows)

    def __getitem__(self, i: int) -> tuple[str, int, int]:
        return self.name, int(i), i.epoch

    def clip(self, i: int) -> SimpleNamespace:
        objects = SimpleNamespace(labels=np.array(self.labels[i], dtype=np.int64))
        return SimpleNamespace(token=f"{self.name}{int(i)}", epoch=getattr(i, "epoch", 0), objects=objects)

    @property
    def scene_names(self) -> list[str]:
        return [f"{self.name}-{row}" for row in self.scene_rows]

    @property
    def locations(self) -> tuple[str, ...]:
        return ("everywhere", f"town of {self.name}")

    def earlier_tokens(self, token: str, count: int) -> list[str]:
        number = {f"{self.name}{i}": i for i in range(len(self))}[token]
        return [f"{self.name}{i}" for i in range(number - 1, max(number - 1 - count, -1), -1)]

    def truth(self, token: str) -> tuple[str, str]:
        return self.name, token

    def past_centers(self, tokens: list[str], instance_ids: np.ndarray) -> tuple[str, list[str]]:
        return self.name, tokens

    camera_views = truth

    def has_map(self, location: str) -> bool:
        return location.endswith(self.name)

    def require_map(self, location: str) -> None:
        if not self.has_map(location):
            raise InputError(self.name, "location", location)

    def map_raster(self, location: str, pose: np.ndarray, grid: object) -> tuple[str, str]:
        return self.name, location


def test_repeated_samples_are_augmented_anew() -> None:
    """Each copy has an epoch of its own, and no two passes share one."""
    dataset = RepeatDataset(Scenes("a", (2, 1)), times=2)
    assert [dataset[ClipIndex(i, 3)] for i in range(6)] == [("a", i % 3, 6 + i // 3) for i in range(6)]
    assert dataset.stream_starts.tolist() == [True, False, True] * 2
    assert dataset.scene_rows.tolist() == [0, 0, 1, 2, 2, 3]
    dataset.set_epoch(1)
    assert dataset[5] == ("a", 2, 3)


def test_joined_sets_keep_their_scenes_apart() -> None:
    dataset = ConcatDataset([Scenes("a", (2,)), Scenes("b", (1, 2))])
    assert [dataset[ClipIndex(i, 0)][:2] for i in range(5)] == [("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)]
    assert dataset.stream_starts.tolist() == [True, False, True, True, False]
    assert dataset.scene_rows.tolist() == [0, 0, 1, 2, 2] and dataset.classes == ("car", "bus")
    with pytest.raises(InputError, match=r"ConcatDataset: datasets.1.classes: \['bus'\], but datasets.0 has"):
        ConcatDataset([Scenes("a", (2,)), Scenes("b", (1,), classes=("bus",))])


def test_a_joined_set_is_of_no_single_split() -> None:
    """A score of one split refuses it at the start, and not the other split's samples at the end."""

    def part(name: str, split: str, annotated: int) -> Scenes:
        scenes = Scenes(name, (2,))
        scenes.metainfo = {**scenes.metainfo, "split": split, "version": "v1", "num_annotated": annotated}
        return scenes

    meta = ConcatDataset([part("a", "val", 3), part("b", "test", 4)]).metainfo
    assert meta == {"classes": ("car", "bus"), "split": "val + test", "version": "v1", "num_annotated": 7}
    assert RepeatDataset(part("a", "val", 3), times=2).metainfo["split"] == "val"
    with pytest.raises(InputError, match="ConcatDataset: datasets: name at least one"):
        ConcatDataset([])


def test_joined_datasets_number_their_cameras_alike():
    """Fewer, others or none are taken; one that both have stands at the same place."""
    first, second = Scenes("a", (2,)), Scenes("b", (1,))
    first.metainfo["cameras"] = ("FRONT", "BACK")
    for cameras in (("FRONT",), ("FRONT", "BACK"), ("a", "BACK"), ("a", "b", "c")):
        second.metainfo["cameras"] = cameras
        assert len(ConcatDataset([first, second, Scenes("c", (1,))])) == 4
    second.metainfo["cameras"] = ("BACK", "FRONT")
    with pytest.raises(InputError, match=r"datasets.1.cameras: \['BACK', .* datasets.0 has \['FRONT'"):
        ConcatDataset([first, second])


@pytest.mark.parametrize("kind", [ConcatDataset, RepeatDataset, CBGSDataset])
def test_each_answers_the_whole_protocol(kind) -> None:
    """Expected: every name that bevstack.datasets.base.BEVDataset lists."""
    asked = {name for name, value in vars(BEVDataset).items() if callable(value) or isinstance(value, property)}
    asked = {name for name in asked if not name.startswith("_")} | {"__len__", "__getitem__"}
    assert {"clip", "truth", "scene_names", "map_raster"} <= asked
    assert {name for name in asked if name not in dir(kind)} == set()


def test_each_part_of_a_joined_set_answers_for_its_own() -> None:
    dataset = ConcatDataset([Scenes("a", (2,)), Scenes("b", (1, 2))])
    assert dataset.scene_names == ["a-0", "a-0", "b-0", "b-1", "b-1"]
    assert dataset.locations == ("everywhere", "town of a", "town of b")
    assert dataset.clip(ClipIndex(3, 2)).token == "b1" and dataset.clip(ClipIndex(3, 2)).epoch == 2
    assert dataset.earlier_tokens("b2", 5) == ["b1", "b0"] and dataset.earlier_tokens("a1", 5) == ["a0"]
    assert dataset.truth("a0") == dataset.camera_views("a0") == ("a", "a0") and dataset.truth("b2") == ("b", "b2")
    assert dataset.past_centers(["b1", "b0"], np.arange(2)) == ("b", ["b1", "b0"])
    assert dataset.has_map("town of b") and not dataset.has_map("nowhere")
    assert dataset.map_raster("town of b", np.eye(4), None) == ("b", "town of b")
    with pytest.raises(KeyError):
        dataset.earlier_tokens("c0", 1)
    with pytest.raises(InputError, match="a: location: nowhere"):
        dataset.require_map("nowhere")


@pytest.mark.parametrize("length", [1, 5])
def test_rare_classes_come_as_often(length) -> None:
    """Two of forty scenes of five show a bus: before, one piece in twenty, afterwards about half of the draws."""
    labels = [[0, 1] if i < 10 else [0] for i in range(200)]
    dataset = CBGSDataset(Scenes("a", (5,) * 40, labels), piece_length=length)
    with_bus = np.mean([1 in labels[dataset[ClipIndex(i, 0)][1]] for i in range(len(dataset))])
    assert 0.45 < with_bus < 0.65 and len(dataset) == pytest.approx(210, abs=5)
    pieces = streams_of(dataset)
    assert {len(piece) for piece in pieces} == {length}
    for piece in pieces:
        members = [dataset[ClipIndex(int(i), 0)] for i in piece]
        assert [number - members[0][1] for _, number, _ in members] == list(range(length))
        assert len({epoch for _, _, epoch in members}) == 1, "a copy of a stream is augmented as one"


def test_streams_of_a_repeated_set_go_on() -> None:
    """In every slot a sample follows its predecessor of the same copy, or starts a stream."""
    dataset = RepeatDataset(Scenes("a", (3, 4, 2)), times=3)
    sampler = StreamingSampler(dataset, batch_size=2, seed=0)
    order = list(sampler)
    for slot in range(2):
        column = [dataset[i] for i in order[slot::2]]
        starts = [bool(dataset.stream_starts[i]) for i in order[slot::2]]
        for before, after, start in zip(column[:-1], column[1:], starts[1:], strict=True):
            assert start or (after[1], after[2]) == (before[1] + 1, before[2])

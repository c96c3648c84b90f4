"""Features come back bit for bit, of the sample and identity they were written for, or not at all."""

from __future__ import annotations

import multiprocessing
import os
import pickle

import pytest
import torch

from bevstack.structures.feature_store import FeatureStore

SHAPES = [(6, 5, 4, 7), (6, 11, 2, 3)]
BYTES = sum(torch.Size(shape).numel() for shape in SHAPES) * 2


def levels_of(seed: int, dtype: torch.dtype = torch.bfloat16, channels_last: bool = True) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return [torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout) for shape in SHAPES]


@pytest.mark.parametrize("channels_last", [True, False], ids=["channels last", "channels first"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_what_is_read_is_what_was_written(tmp_path, dtype, channels_last) -> None:
    """Expected: the tensors themselves, stacked: values, number format and strides."""
    store = FeatureStore(5, 10**6, folder=tmp_path)
    written = {number: levels_of(number, dtype, channels_last) for number in (3, 0)}
    assert all(store.write(number, 17 + number, levels) for number, levels in written.items())
    found = store.split([store.read(3, 20), store.read(0, 17)])
    for level, (one, other) in zip(found, zip(written[3], written[0], strict=True), strict=True):
        assert level.dtype == dtype and torch.equal(level, torch.stack([one, other]))
        assert level.flatten(0, 1).stride() == torch.cat([one, other]).stride()
    assert list(tmp_path.iterdir()) == [], "the file has no name and goes with the process"


def test_another_identity_or_number_is_another_sample(tmp_path) -> None:
    store = FeatureStore(5, 10**6, folder=tmp_path)
    assert store.read(1, 7) is None, "nothing is there before the first write"
    store.write(1, 7, levels_of(0))
    assert store.read(1, 7) is not None
    assert store.read(1, 8) is None and store.read(2, 7) is None and store.read(99, 7) is None
    store.write(1, 8, levels_of(1))
    assert store.read(1, 7) is None and torch.equal(store.split([store.read(1, 8)])[0][0], levels_of(1)[0])


def test_the_file_stays_within_its_bytes(tmp_path) -> None:
    # Expected: a page for the header, one for the entries of a few samples, then whole samples.
    store = FeatureStore(5, 2 * 4096 + 3 * BYTES - 1, tmp_path / "a.features")
    assert [store.write(number, 1, levels_of(number)) for number in (4, 0, 1, 2)] == [False, True, True, False]
    assert store.capacity == 2 and os.path.getsize(tmp_path / "a.features") <= store.max_bytes
    assert store.read(1, 1) is not None and store.read(2, 1) is None
    nothing = FeatureStore(5, 100, folder=tmp_path)
    assert not nothing.write(0, 1, levels_of(0)) and nothing.read(0, 1) is None


def test_a_file_goes_on_with_what_it_holds_and_damage_is_seen(tmp_path) -> None:
    FeatureStore(5, 10**6, tmp_path / "a.features").write(2, 7, levels_of(2))
    store = FeatureStore(5, 10**6, tmp_path / "a.features")
    assert torch.equal(store.split([store.read(2, 7)])[1][0], levels_of(2)[1])
    with open(tmp_path / "a.features", "r+b") as file:
        file.seek(2 * 4096 + 2 * BYTES + 5)
        before = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([before ^ 1]))
    assert store.read(2, 7) is None, "one bit is another"
    store.write(2, 7, levels_of(2))
    assert store.read(2, 7) is not None
    os.truncate(tmp_path / "a.features", 2 * 4096 + 2 * BYTES + 5)
    assert store.read(2, 7) is None, "half a sample is none"


def test_other_levels_are_refused(tmp_path) -> None:
    store = FeatureStore(5, 10**6, folder=tmp_path)
    store.write(0, 1, levels_of(0))
    with pytest.raises(ValueError, match=r"features of .*float32.*; those that are kept have .*bfloat16"):
        store.write(1, 1, levels_of(0, torch.float32))


def answer(pickled: bytes, number: int, queue: multiprocessing.Queue) -> None:
    queue.put(pickle.loads(pickled).read(number, 7).sum().item())


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_another_process_reads_what_this_one_writes(tmp_path, named, method) -> None:
    """The loader's way: handed over before anything is there, by either way of starting processes."""
    store = FeatureStore(5, 10**6, tmp_path / "a.features" if named else None, folder=tmp_path)
    pickled = pickle.dumps(store)
    store.write(3, 7, levels_of(3))
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=answer, args=(pickled, 3, queue))
    process.start()
    assert queue.get(timeout=100) == store.read(3, 7).sum().item() > 0
    process.join()

"""Files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import os
import resource
import signal
import stat

import pytest

from bevstack.errors import InputError
from bevstack.files import atomic_folder, atomic_write, remove_partial_files


def test_the_file_appears_when_the_block_ends(tmp_path):
    # Expected: while it is written, a name of the same ending beside the earlier file, which is untouched; then the new
    # content alone, with the permissions that the process gives its files.
    path = tmp_path / "deep" / "picture.png"
    for content in (b"first", b"second"):
        with atomic_write(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".png" and temporary != path
            temporary.write_bytes(content)
            assert path.exists() == (content == b"second") and (not path.exists() or path.read_bytes() == b"first")
        assert path.read_bytes() == content and os.listdir(path.parent) == ["picture.png"]
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_a_block_that_fails_leaves_what_was_there(tmp_path, write):
    path = tmp_path / "metrics"
    with write(path) as temporary:
        (temporary / "a" if write is atomic_folder else temporary).write_text("earlier")
    with pytest.raises(RuntimeError, match="half way"), write(path) as temporary:
        (temporary / "a" if write is atomic_folder else temporary).write_text("half")
        raise RuntimeError("half way")
    assert (path / "a" if write is atomic_folder else path).read_text() == "earlier"
    assert os.listdir(tmp_path) == ["metrics"]


def test_what_the_system_says_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"x.json: report: cannot be written: Not a directory; gone$"):
        with atomic_write(tmp_path / "file" / "x" / "x.json", "report", "; gone"):
            pass
    with pytest.raises(InputError, match="file/x: --out: cannot be written: Not a directory"):
        with atomic_folder(tmp_path / "file" / "x", "--out"):
            pass
    with pytest.raises(InputError, match="a.json: report: is wrong"), atomic_write(tmp_path / "a.json"):
        raise InputError("a.json", "report", "is wrong")
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_earlier_file(tmp_path):
    # The limit on file sizes stands for the disk: the system refuses the write in the same place, here when the text
    # that Python holds back is written at the file's end.
    path = tmp_path / "a.txt"
    path.write_text("earlier")
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(InputError, match="a.txt: file: cannot be written: File too large"):
            with atomic_write(path) as temporary, open(temporary, "w") as file:
                file.write(200 * "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert path.read_text() == "earlier" and os.listdir(tmp_path) == ["a.txt"]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    # Expected order: the content is synchronised, then the file is renamed, then its folder is synchronised.
    done = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor):
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("name"), replace(*paths)))
    with atomic_write(tmp_path / "a.bin") as temporary:
        temporary.write_bytes(b"12345")
    assert done == [5, "name", "folder"]


@pytest.mark.parametrize("name", ["epoch_1.pth", "last_checkpoint"])
def test_leftovers_of_a_killed_write_are_removed(tmp_path, name):
    # A process that ends inside the block: no exception handler runs.
    child = os.fork()
    if child == 0:
        with atomic_write(tmp_path / name) as temporary:
            temporary.write_text("half")
            os._exit(0)
    os.waitpid(child, 0)
    (tmp_path / ".train.lock").touch()
    (tmp_path / "iter_1.pth").touch()
    assert len(os.listdir(tmp_path)) == 3
    remove_partial_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".train.lock", "iter_1.pth"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    # Expected: nothing of the earlier folder is left, nor of a process that is gone; what it made above itself goes, if
    # it fails. Characters that mean something in patterns are names like others.
    folder = tmp_path / "new" / "set[1]"
    with pytest.raises(RuntimeError), atomic_folder(folder):
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    for name in ("a", "b"):
        with atomic_folder(folder) as temporary:
            (temporary / name).touch()
            assert not folder.exists() or os.listdir(folder) == ["a"]
        assert os.listdir(folder) == [name]
        (folder.parent / ".set[1].partial-99999999").mkdir()
    (folder.parent / ".set[1].partial-1").mkdir()  # of a process that runs
    with atomic_folder(folder):
        pass
    assert sorted(os.listdir(folder.parent)) == [".set[1].partial-1", "set[1]"] and os.listdir(folder) == []


def test_a_folder_that_cannot_have_its_name_gives_it_back(tmp_path, monkeypatch):
    with atomic_folder(tmp_path / "set") as temporary:
        (temporary / "earlier").touch()
    rename, calls = os.rename, []

    def failing(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(InputError, match="set: folder: cannot be written: No space left on device"):
        with atomic_folder(tmp_path / "set"):
            pass
    assert os.listdir(tmp_path) == ["set"] and os.listdir(tmp_path / "set") == ["earlier"]

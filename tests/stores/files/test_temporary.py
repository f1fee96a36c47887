"""Temporary folders: they live as long as they are used, and no longer."""

from __future__ import annotations

import os
import shutil

import pytest

from accumulator._stores.files import system
from accumulator._stores.files.temporary import TemporaryFolder
from accumulator.exceptions import StorageError


def test_forked_child_removes_nothing(tmp_path):
    """A child that inherits a folder by fork leaves it to the parent."""
    folder = TemporaryFolder(str(tmp_path))
    assert folder.path.parent == tmp_path
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "getpid", lambda: -1)
        folder.remove()
    assert folder.path.exists()
    folder.path.rmdir()


def test_folder_survives_a_parent_that_vanishes(tmp_path, monkeypatch):
    """When another process removes save_path between two steps, it is made again."""
    real, calls = system.make_private_folder, []

    def vanish_once(path):
        calls.append(1)
        if len(calls) == 1:
            (tmp_path / "parent").rmdir()
        return real(path)

    monkeypatch.setattr(system, "make_private_folder", vanish_once)
    folder = TemporaryFolder(str(tmp_path / "parent"))
    assert folder.path.is_dir()
    folder.remove()
    assert not (tmp_path / "parent").exists()


def test_shared_parent_stays_while_others_use_it(tmp_path):
    """The parent that one folder made is removed only when it is empty."""
    first = TemporaryFolder(str(tmp_path / "parent"))
    second = TemporaryFolder(str(tmp_path / "parent"))
    first.remove()
    assert second.path.is_dir()
    second.remove()
    second.remove()
    assert not (tmp_path / "parent").exists()


def test_parent_made_anew_by_others_stays(tmp_path):
    """A folder that took the place of one made here is not ours to remove."""
    folder = TemporaryFolder(str(tmp_path / "parent"))
    (tmp_path / "parent").rename(tmp_path / "moved")
    (tmp_path / "parent").mkdir()
    folder.remove()
    assert (tmp_path / "parent").is_dir()
    (tmp_path / "moved" / folder.path.name).rmdir()


def test_parent_that_never_stays_is_an_error(tmp_path, monkeypatch):
    """When others keep removing save_path the attempts end, with a typed error."""

    def vanish(_):
        (tmp_path / "parent").rmdir()
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(system, "make_private_folder", vanish)
    with pytest.raises(StorageError, match="no folder can be made"):
        TemporaryFolder(str(tmp_path / "parent"))


def test_parent_removed_by_others_is_forgotten(tmp_path):
    """When somebody removed save_path and all in it, there is nothing to do."""
    folder = TemporaryFolder(str(tmp_path / "parent" / "below"))
    shutil.rmtree(tmp_path / "parent")
    folder.remove()
    assert not (tmp_path / "parent").exists()


def test_folder_that_cannot_be_removed_is_tried_again(tmp_path, monkeypatch):
    """A refusal of the system is a typed error, and the folder is still looked after."""
    folder = TemporaryFolder(str(tmp_path / "parent"))
    with monkeypatch.context() as patched:
        patched.setattr(system.shutil, "rmtree", _not_permitted)
        with pytest.raises(StorageError, match="cannot be removed"):
            folder.remove()
    folder.remove()
    assert not (tmp_path / "parent").exists()


@pytest.mark.parametrize("is_made", [False, True])
def test_interrupt_as_it_is_made_leaves_nothing(tmp_path, monkeypatch, is_made):
    """Ctrl-C may come before or behind the step that makes it."""
    real = system.make_private_folder

    def interrupted(path):
        if is_made:
            real(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(system, "make_private_folder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TemporaryFolder(str(tmp_path / "parent"))
    assert not (tmp_path / "parent").exists()


def _not_permitted(*_):
    raise PermissionError(13, "Permission denied")


def test_name_that_is_too_long_leaves_nothing(tmp_path):
    """A typed error, and no folder of those that could be made."""
    path = tmp_path / "parent"
    while len(str(path)) < 4060:
        path /= "x" * min(200, 4060 - len(str(path)))
    with pytest.raises(StorageError, match="no folder can be made"):
        TemporaryFolder(str(path))
    assert not (tmp_path / "parent").exists()


def test_parent_that_is_refused_leaves_none_above(tmp_path, monkeypatch):
    """The second of three folders is refused: the first goes, too."""
    real = system.make_folder

    def make(path):
        if path.name == "second":
            raise OSError(28, "No space left on device")
        return real(path)

    monkeypatch.setattr(system, "make_folder", make)
    with pytest.raises(StorageError, match="no folder can be made"):
        TemporaryFolder(str(tmp_path / "first" / "second" / "third"))
    assert not (tmp_path / "first").exists()

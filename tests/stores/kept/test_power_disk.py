"""The disk that loses what was not synced: it is as harsh as POSIX allows, and else like any other."""

from __future__ import annotations

import os
import random

import pytest
from helpers.files import tree
from helpers.power.disk import SECTOR, Disk
from helpers.power.mount import Machine, why_not

from accumulator._stores.files.ownership import is_locked


def outcomes(change, look):
    """Return what is seen after cuts by many coins, each of a new disk that something was done to."""
    seen = set()
    for seed in range(1000):
        disk = Disk()
        change(disk)
        disk.cut(seed)
        seen.add(look(disk))
    return seen


def content(disk, path):
    """Return what a file has; None where there is none."""
    try:
        return disk.nodes[disk.find(path)].read(0, 10**6)
    except FileNotFoundError:
        return None


def made(disk, path, text):
    """Make a file that is safe, all but its name."""
    file = disk.nodes[disk.create(path)]
    file.write(text, 0)
    file.sync()
    return file


def test_a_cut_keeps_what_was_synced_and_nothing_else_for_sure():
    """A file's sync keeps bytes and size, its folder's sync the name; neither does what the other does."""

    def change(disk):
        disk.make_folder("/a")
        made(disk, "/a/both", b"x")
        disk.sync_folder("/a")
        disk.sync_folder("/")
        made(disk, "/a/bytes", b"y")
        disk.create("/name")
        disk.nodes[disk.find("/name")].write(b"z", 0)
        disk.sync_folder("/")

    def look(disk):
        return tuple(content(disk, path) for path in ("/a/both", "/a/bytes", "/name"))

    assert outcomes(change, look) == {
        (b"x", here, there) for here in (None, b"y") for there in (b"", b"z", b"\0")
    }


def test_a_cut_keeps_any_of_what_a_page_was_and_tears_it_between_sectors():
    """What was written twice is the old, the first or the second; a sector is of one of them."""
    old, first, second = (letter * SECTOR for letter in (b"o", b"f", b"s"))

    def change(disk):
        file = made(disk, "/a", 2 * old)
        disk.sync_folder("/")
        file.write(2 * first, 0)
        file.write(2 * second, 0)

    sectors = (old, first, second)
    assert outcomes(change, lambda disk: content(disk, "/a")) == {a + b for a in sectors for b in sectors}


def test_a_cut_renames_or_does_not():
    """A name that a file is renamed to has the old file or the new one, and never none."""

    def change(disk):
        made(disk, "/old", b"1")
        disk.sync_folder("/")
        made(disk, "/new", b"2")
        disk.rename("/new", "/old")

    seen = outcomes(change, lambda disk: (content(disk, "/old"), content(disk, "/new")))
    assert seen == {(b"1", None), (b"1", b"2"), (b"2", None)}


def test_a_cut_takes_a_folder_with_all_that_is_in_it():
    """What is synced in a folder whose own name is not may be lost; a removal may not have happened."""

    def change(disk):
        disk.make_folder("/a")
        made(disk, "/a/x", b"1")
        disk.sync_folder("/a")
        made(disk, "/b", b"2")

    def remove(disk):
        made(disk, "/b", b"2")
        disk.sync_folder("/")
        disk.remove("/b")

    def look(disk):
        return tuple(content(disk, path) for path in ("/a/x", "/b"))

    assert outcomes(change, look) == {(here, there) for here in (None, b"1") for there in (None, b"2")}
    assert outcomes(remove, look) == {(None, None), (None, b"2")}


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_the_disk_does_what_any_other_does(tmp_path):
    """Random changes leave the same on the tests' disk and on the system's own; so do a lock and a resize."""
    chance = random.Random(1)  # noqa: S311  no secret
    real, machine = tmp_path / "real", Machine(tmp_path / "disk", tmp_path / "errors")
    real.mkdir()
    try:
        machine.mount()
        for _ in range(600):
            name, other = (f"{chance.choice('ab')}/{chance.choice('xyz')}" for _ in range(2))
            act = chance.choice(["make", "write", "cut", "remove", "rename", "empty"])
            at, size = chance.randrange(9000), chance.randrange(9000)
            assert done(act, real, name, other, at, size) == done(act, machine.folder, name, other, at, size)
        assert tree(machine.folder) == tree(real) != {}
        assert is_locked(machine.folder) is False
        machine.unmount()
    finally:
        machine.close()


def done(act, folder, name, other, at, size):
    """Change something, and return how the system refused it."""
    path = folder / name
    try:
        if act == "make":
            path.parent.mkdir()
        elif act == "write":
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
            os.pwrite(descriptor, bytes([1 + at % 255]) * size, at)
            os.fsync(descriptor)
            os.close(descriptor)
        elif act == "cut":
            os.truncate(path, size)
        elif act == "remove":
            path.unlink()
        elif act == "empty":
            path.parent.rmdir()
        else:
            path.rename(path.with_name(other[-1]))
    except OSError as refusal:
        return refusal.errno
    return path.exists() and path.stat().st_size

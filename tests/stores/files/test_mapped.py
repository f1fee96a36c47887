"""Arrays in mapped files: their room is taken before anything is put there."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from accumulator._stores.files import system as _system
from accumulator._stores.files.errors import SizeError
from accumulator._stores.files.mapped import make_mapped, open_mapped

DTYPE = np.dtype(np.int64)


def test_comes_back(tmp_path):
    """What was put there is read by another, who cannot change it; also where there is nothing."""
    for shape in ((1000, 3), (0, 3)):
        path = tmp_path / str(shape[0])
        made = make_mapped(path, shape, DTYPE)
        assert not made.any()
        made[...] = np.arange(made.size).reshape(shape)
        found = open_mapped(path, shape, DTYPE)
        np.testing.assert_array_equal(found, np.arange(made.size).reshape(shape))
    with pytest.raises(ValueError, match="read-only"):
        open_mapped(tmp_path / "1000", (1000, 3), DTYPE)[0, 0] = 1


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    """Writing to a hole would end the process: there is none, and nothing is left where there is no room."""
    make_mapped(tmp_path / "whole", (10**5,), DTYPE)
    assert (tmp_path / "whole").stat().st_blocks * 512 >= 8 * 10**5

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(_system.os, "posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        make_mapped(tmp_path / "none", (10**5,), DTYPE)
    assert not (tmp_path / "none").exists()


def test_a_file_that_was_cut_is_refused(tmp_path):
    """Before it is mapped: reading behind its end would end the process."""
    make_mapped(tmp_path / "cut", (100,), DTYPE)
    os.truncate(tmp_path / "cut", 799)
    with pytest.raises(SizeError, match="799 bytes, not 800"):
        open_mapped(tmp_path / "cut", (100,), DTYPE)

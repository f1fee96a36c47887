"""Arrays in files, which processes of a machine share: they take its memory once, while there is some."""

from __future__ import annotations

import math
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from accumulator._stores.files import system
from accumulator._stores.files.errors import SizeError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def make_mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array of zeros in a new file, which has what is put there once it is synced.

    An OSError where the disk has no room for it; nothing is left then.
    """
    system.allocate(path, _nbytes(shape, dtype))  # writing to a mapped hole on a full disk ends the process
    return _mapped(path, system.CHANGE, mmap.ACCESS_WRITE, shape, dtype)


def open_mapped(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array in a file, read-only; SizeError tells that the file is not of its size."""
    return _mapped(path, system.READ, mmap.ACCESS_READ, shape, dtype)


def _mapped(
    path: Path, flags: int, access: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> NDArray[Any]:
    nbytes = _nbytes(shape, dtype)
    with system.opened(path, flags) as file:
        if os.fstat(file).st_size != nbytes:
            raise SizeError(f"{path} has {os.fstat(file).st_size} bytes, not {nbytes}")
        if nbytes == 0:
            return np.zeros(shape, dtype)
        return np.frombuffer(mmap.mmap(file, nbytes, access=access), dtype).reshape(shape)


def _nbytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return math.prod(shape) * dtype.itemsize

"""The record of a part: a file a checkpoint, with the rows that it recorded and their checksums.

A segment is one line of JSON, its rows, the checksums of each, and the SHA-256 of all that. Rows are runs
that follow each other, or distances in the smallest integers that hold them. It gets its name when it is
whole, so that what cannot be read is damage, and never what a crash has left. Where there are many, one file
has all of them by now.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

_VERSION: Final = 1
ALL: Final = ".all"  # behind the name of a file that has what it and all earlier ones had
_HASH_NBYTES: Final = 32
_LENGTH_NBYTES: Final = 8
_MOST_HEADER: Final = 2**12
_STEPS: Final = ("|u1", "<u2", "<u4", "<u8")


@attrs.frozen(eq=False)
class Segment:
    """Rows that were recorded together."""

    rows: NDArray[np.intp]  # rising
    checksums: NDArray[np.uint64]  # (n, heads)
    seconds: float  # when, since 1970

    def encode(self) -> bytes:
        """Return the file's bytes."""
        steps = np.diff(self.rows, prepend=self.rows[:1])
        starts = np.flatnonzero(steps != 1)  # of rows that follow each other
        most = int(steps.max()) if len(steps) else 0
        dtype = next(name for name in _STEPS if most <= np.iinfo(name).max)
        is_in_runs = 16 * len(starts) < np.dtype(dtype).itemsize * len(steps)
        if is_in_runs:
            lengths = np.diff(starts, append=len(steps))
            packed = np.stack([self.rows[starts], lengths]).astype("<u8").tobytes()
        else:
            packed = steps.astype(dtype).tobytes()
        header = {
            "version": _VERSION,
            "n": len(self.rows),
            "heads": self.checksums.shape[1],
            "first": int(self.rows[0]) if len(self.rows) else 0,
            "steps": dtype,
            "runs": len(starts) if is_in_runs else None,
            "seconds": self.seconds,
        }
        text = json.dumps(header).encode() + b"\n"
        content = text + packed + self.checksums.astype("<u8").tobytes()
        return content + hashlib.sha256(content).digest()


def decode(content: bytes, n_rows: int, n_heads: int) -> Segment:
    """Return what a file says; a ValueError tells that it is damaged, or of another run."""
    content, told = content[:-_HASH_NBYTES], content[-_HASH_NBYTES:]
    if hashlib.sha256(content).digest() != told:
        raise ValueError("it is not what was written")
    text, _, packed = content.partition(b"\n")
    header = _header(text, n_heads)
    n, dtype, n_runs = header["n"], np.dtype(header["steps"]), header["runs"]
    rows_nbytes = n * dtype.itemsize if n_runs is None else 16 * n_runs
    if len(packed) != rows_nbytes + 8 * n * n_heads:
        raise ValueError("it has another length than it says")
    if n_runs is None:
        rows = header["first"] + np.cumsum(np.frombuffer(packed, dtype, n).astype(np.intp))
    else:
        starts, lengths = np.frombuffer(packed, "<i8", 2 * n_runs).reshape(2, n_runs)
        if not ((starts >= 0).all() and (lengths > 0).all() and (lengths <= n).all() and lengths.sum() == n):
            raise ValueError("its runs of rows are not as many rows as it says")
        rows = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(n)
    if n and not (rows[0] >= 0 and rows[-1] < n_rows and (np.diff(rows) > 0).all()):
        raise ValueError(f"its rows are not some of {n_rows}")
    checksums = np.frombuffer(packed, "<u8", offset=rows_nbytes).reshape(n, n_heads)
    return Segment(rows, checksums.astype(np.uint64), float(header["seconds"]))


def join(segments: Iterable[bytes]) -> bytes:
    """Return many files' bytes as one."""
    return b"".join(len(each).to_bytes(_LENGTH_NBYTES, "little") + each for each in segments)


def split(content: bytes) -> Iterator[bytes]:
    """Yield the files' bytes that `join` has put together; a ValueError tells that some are cut off."""
    at = 0
    while at < len(content):
        start = at + _LENGTH_NBYTES
        at = start + int.from_bytes(content[at:start], "little")
        if start >= at or at > len(content):
            raise ValueError("it ends too early")
        yield content[start:at]


def _header(text: bytes, n_heads: int) -> dict[str, Any]:
    if len(text) > _MOST_HEADER:
        raise ValueError("it does not begin as it should")
    header: dict[str, Any] = json.loads(text)
    is_right = (
        isinstance(header, dict)
        and header.get("version") == _VERSION
        and header.get("steps") in _STEPS
        and all(type(header.get(name)) is int and 0 <= header[name] < 2**62 for name in ("n", "first"))
        and header.get("heads") == n_heads
        and (header.get("runs", 0) is None or (type(header["runs"]) is int and 0 <= header["runs"] < 2**62))
        and isinstance(header.get("seconds"), int | float)
    )
    if not is_right:
        raise ValueError(f"it is not of version {_VERSION} and of {n_heads} heads")
    return header

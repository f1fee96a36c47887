"""The record of a part comes back as it was written, whatever its rows are, or is refused."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accumulator._stores.format.segments import Segment, decode, join, split

ROWS = st.one_of(
    st.lists(st.integers(0, 2**40), max_size=60, unique=True),
    st.lists(st.integers(0, 300), max_size=200, unique=True),
    st.tuples(st.integers(0, 9), st.integers(1, 300)).map(lambda run: list(range(run[0], sum(run)))),
)


@given(rows=ROWS, n_heads=st.integers(1, 3), seconds=st.floats(0, 2e9))
def test_comes_back(rows, n_heads, seconds):
    """Rows, checksums and time are the same, for runs and for single rows."""
    rows = np.array(sorted(rows), np.intp)
    checksums = np.random.default_rng(len(rows)).integers(0, 2**64, (len(rows), n_heads), np.uint64)
    content = Segment(rows, checksums, seconds).encode()
    found = decode(content, 2**41, n_heads)
    assert found.rows.tolist() == rows.tolist()
    assert found.checksums.tolist() == checksums.tolist()
    assert found.seconds == seconds


def test_takes_few_bytes():
    """Nine bytes a row that follows another at a small distance, eight where they are runs, for one head."""
    for rows, most in ((np.arange(0, 10**5, 3), 9.01), (np.arange(10**5), 8.01)):
        content = Segment(rows, np.zeros((len(rows), 1), np.uint64), 0.0).encode()
        assert len(content) / len(rows) < most


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7), is_run=st.booleans())
def test_any_flipped_bit_is_found(position, bit, is_run):
    """Wherever it is."""
    rows = np.arange(40) if is_run else np.arange(0, 400, 10)
    content = bytearray(Segment(rows, np.ones((40, 2), np.uint64), 1.5).encode())
    content[position % len(content)] ^= 1 << bit
    with pytest.raises(ValueError, match=r"."):
        decode(bytes(content), 400, 2)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"n": 40', b'"n": 41'),
        (b'"heads": 2', b'"heads": 3'),
        (b'"first": 0', b'"first": 9'),
        (b'"runs": 1', b'"runs": 2'),
        (b'"runs": 1', b'"runs": []'),
        (b'"version": 1', b'"version": 2'),
        (b'"seconds": 1.5', b'"seconds": []'),
        (b'{"version"', b'["version"'),
    ],
)
def test_a_strangers_file_is_refused(old, new):
    """One whose hash is right, and which says what cannot be."""
    content = Segment(np.arange(40), np.ones((40, 2), np.uint64), 1.5).encode()[:-32]
    assert content.count(old) == 1
    changed = content.replace(old, new)
    changed += hashlib.sha256(changed).digest()
    if new == b'"first": 9':  # which runs do not need
        assert decode(changed, 400, 2).rows.tolist() == list(range(40))
        return
    with pytest.raises((ValueError, KeyError)):
        decode(changed, 400, 2)


def test_of_another_list_is_refused():
    """Rows beyond the list."""
    content = Segment(np.arange(40), np.ones((40, 1), np.uint64), 0.0).encode()
    with pytest.raises(ValueError, match="not some of 39"):
        decode(content, 39, 1)


@given(parts=st.lists(st.binary(min_size=1, max_size=30), max_size=5))
def test_many_in_one(parts):
    """They come back one by one, and a part that was cut off is told."""
    content = join(parts)
    assert list(split(content)) == parts
    if parts:
        with pytest.raises(ValueError, match="too early"):
            list(split(content[:-1]))

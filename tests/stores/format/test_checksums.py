"""Checksums of rows: damage of the kinds that happen is found in rows of the kinds that models make."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from accumulator._stores.format.checksums import row_checksums

DTYPES = ["f2", "f4", "f8", "c8", "i1", "u1", "i2", "u2", "i4", "i8", "?"]
CONSTANTS = [0, 0.25, 0.5, 1, 2, 3, 127, 255, -1, -2, 1 / 3, 0.9]
SHAPE = (64, 64)


def rows_like(dtype):
    """Yield rows that are constant, maps of a few labels, and of random values."""
    dice = np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for constant in CONSTANTS:
            yield np.full(SHAPE, constant).astype(dtype)
        yield np.repeat(dice.integers(0, 3, (64, 8)), 8, axis=1).astype(dtype)
        yield (dice.random(SHAPE) * 100).astype(dtype)


def missed(row, damaged):
    """Return how many damaged rows have the checksum of the right one, without being it."""
    damaged = np.stack(damaged)
    is_same = (damaged == row).all(axis=(1, 2)) & (np.signbit(damaged.real) == np.signbit(row.real)).all(
        (1, 2)
    )
    return np.count_nonzero((row_checksums(damaged) == row_checksums(row[None])) & ~is_same)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lost_pages_and_sectors_are_found(dtype):
    """A stretch of any row that reads as zeros or as ones."""
    for row, size, byte in itertools.product(
        rows_like(dtype), (64, 512, 4096), (0, 1 if dtype == "?" else 255)
    ):
        damaged = []
        for start in range(0, row.nbytes, size):
            damaged.append(row.copy())
            damaged[-1].reshape(-1).view(np.uint8)[start : start + size] = byte
        with np.errstate(invalid="ignore"):
            assert missed(row, damaged) == 0


@pytest.mark.parametrize("dtype", [each for each in DTYPES if each[0] in "fci"])
def test_lost_signs_are_found(dtype):
    """All values negated, or a few, or neighbours."""
    dice = np.random.default_rng(1)
    for row in rows_like(dtype):
        with np.errstate(all="ignore"):
            damaged = [-row]
            for n, width in itertools.product((2, 4, 10), (1, 2, 4)):
                for _ in range(20):
                    damaged.append(row.copy())
                    groups = damaged[-1].reshape(-1, width)
                    groups[dice.choice(len(groups), n, replace=False)] *= -1
        assert missed(row, damaged) == 0


def test_the_same_bits_flipped_in_two_words_are_found():
    """Any one or two bits of one word, and the same ones of another."""
    row = np.random.default_rng(2).random((1, 300))
    right = row_checksums(row)[0]
    for low, high in itertools.combinations_with_replacement(range(64), 2):
        if high - low == 33:
            continue  # pairs that a shift by 33 maps to one bit; no value of 8, 16 or 32 bits has both
        flips = np.uint64(1 << low | 1 << high)
        damaged = np.repeat(row, 20, axis=0)
        words = damaged.view(np.uint64)
        for number, words_hit in enumerate(
            itertools.islice(itertools.combinations(range(0, 300, 43), 2), 20)
        ):
            words[number, list(words_hit)] ^= flips
        assert not (row_checksums(damaged) == right).any()

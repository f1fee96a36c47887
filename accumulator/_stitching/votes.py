"""Votes for classes: the class that most patches have at a pixel wins.

A pixel has as many slots as different classes were voted for there, of which there are no more than patches
that meet. So memory does not follow the number of classes.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from accumulator._stitching.blends import Window

ROUNDED = 32  # votes by a window are rounded to whole numbers: those of so many patches twice over
N_SLOTS = 2  # that a pixel is thought to need: labels differ where objects end


def votes_dtype(window: Window, *, has_weights: bool) -> np.dtype[Any]:
    """Return the dtype that votes are counted in."""
    return np.dtype(np.float64 if window.is_weighted or has_weights else np.uint32)


@attrs.define(eq=False)
class Votes:
    """What was voted for in a part of a band, and how often: two arrays a slot."""

    slots: list[tuple[NDArray[Any], NDArray[Any]]]  # classes and votes; those without votes are free
    make: Callable[[], tuple[NDArray[Any], NDArray[Any]]]  # one more slot for the whole band
    cut: Callable[[NDArray[Any]], NDArray[Any]] = attrs.field(default=lambda array: array)  # this part of it
    slack: int = 0  # votes that differ by no more are as many
    lock: threading.Lock = attrs.field(factory=threading.Lock)  # parts share the slots

    def __getitem__(self, part: slice) -> Votes:
        """Return some of its rows."""
        return self.part(lambda array: array[part])

    def part(self, cut: Callable[[NDArray[Any]], NDArray[Any]]) -> Votes:
        """Return a part of it."""
        return attrs.evolve(self, cut=lambda array: cut(self.cut(array)))

    def add(self, classes: NDArray[Any], votes: NDArray[Any] | None) -> None:
        """Vote: once for each class, or as often as it says."""
        left = np.ones(classes.shape, np.bool_)
        if votes is not None:
            left &= votes > 0
        number = 0
        while left.any():
            if number == len(self.slots):
                with self.lock:
                    if number == len(self.slots):
                        self.slots.append(self.make())
            known, counts = map(self.cut, self.slots[number])
            here = left & ((counts == 0) | (known == classes))
            np.copyto(known, classes, where=here)
            np.add(counts, 1 if votes is None else votes, out=counts, where=here, casting="unsafe")
            left &= ~here
            number += 1

    def won(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the classes with most votes, the lowest where several have as many, and their votes."""
        if not self.slots:
            self.slots.append(self.make())
        slots = [(self.cut(classes), self.cut(votes)) for classes, votes in self.slots]
        winner, most = (array.copy() for array in slots[0])
        for _, votes in slots[1:]:
            np.maximum(most, votes, out=most)
        has_won = slots[0][1] >= most - self.slack
        for classes, votes in slots[1:]:
            is_as_good = (votes >= most - self.slack) & (votes > 0)
            np.copyto(winner, classes, where=is_as_good & (~has_won | (classes < winner)))
            has_won |= is_as_good
        return winner, most

    @property
    def more_nbytes(self) -> int:
        """Bytes of slots beyond those that a band is thought to need."""
        return sum(classes.nbytes + votes.nbytes for classes, votes in self.slots[N_SLOTS:])

    def clear(self) -> None:
        """Forget all votes."""
        for _, votes in self.slots:
            votes[...] = 0

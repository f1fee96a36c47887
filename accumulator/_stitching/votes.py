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
    lock: threading.Lock = attrs.field(factory=threading.Lock)  # parts share the slots

    def __getitem__(self, part: slice) -> Votes:
        """Return some of its rows."""
        return self.part(lambda array: array[part])

    def part(self, cut: Callable[[NDArray[Any]], NDArray[Any]]) -> Votes:
        """Return a part of it."""
        return attrs.evolve(self, cut=lambda array: cut(self.cut(array)))

    def add(self, classes: NDArray[Any], votes: NDArray[Any] | None) -> None:
        """Vote: once for each class, or as often as it says."""
        left = np.ones(classes.shape, np.bool_) if votes is None else votes > 0
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
        winner, most = (self.cut(array).copy() for array in self.slots[0])
        for classes, votes in (map(self.cut, slot) for slot in self.slots[1:]):
            is_better = (votes > most) | ((votes == most) & (votes > 0) & (classes < winner))
            np.copyto(winner, classes, where=is_better)
            np.copyto(most, votes, where=is_better)
        return winner, most

    def clear(self) -> None:
        """Forget all votes."""
        for _, votes in self.slots:
            votes[...] = 0

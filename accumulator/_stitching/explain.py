"""What a user may have meant whose patches do not fit their boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs
import numpy as np

from accumulator._inputs.text import named
from accumulator.exceptions import LocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@attrs.frozen(eq=False)
class Misfit:
    """A head and its boxes, of which some are not like its patches."""

    label: str
    patch_shape: tuple[int, ...]  # as it was pushed
    whole: tuple[int, ...]  # the spatial part of it
    length: NDArray[Any]  # (N, d): of the boxes, in pixels
    boxes: NDArray[np.int64]  # as they were given
    name: str  # of the list
    is_channels_first: bool
    patch: tuple[int, ...] = ()  # what crop leaves of it

    def error(self, what: str) -> LocationError:
        """Return an error about all boxes."""
        longest = _plain(self.length.max(axis=0))
        return LocationError(
            f"{self.label} has patches of {self.whole}, and boxes of at most {longest}: {what}"
        )

    def refuse_larger(self, is_wrong: NDArray[np.bool_]) -> None:
        """Refuse boxes that are larger than what there is of a patch."""
        wrong = np.flatnonzero(is_wrong.any(axis=1))
        if len(wrong):
            raise LocationError(
                f"boxes larger than the patches: {self._facts(wrong)}; " + "; ".join(self._meant())
            )

    def refuse_shorter(
        self,
        is_wrong: NDArray[np.bool_],
        begins: NDArray[np.bool_],
        ends: NDArray[np.bool_],
        is_known: NDArray[np.bool_],
        shape: tuple[int, ...],
    ) -> None:
        """Refuse boxes that are smaller than their patches, on axes where no edge explains it.

        Masks are ``(N, d)``: ``begins`` and ``ends`` say which of them do so with the map; ``is_known``,
        ``(d,)``, where it is certain that the map ends there.
        """
        wrong = np.flatnonzero(is_wrong.any(axis=1))
        if not len(wrong):
            return
        reasons = list(self._meant())
        if (is_wrong & ~begins & ends & ~is_known).any():
            reasons.append(
                "output_shape= if they were cut where the maps end, which no uncut box of the list tells"
            )
        if (is_wrong & begins & ~ends).any():
            reasons.append(
                "boxes that were cut on the left or at the top: give them uncut, for they may reach over the "
                "edge"
            )
        if (is_wrong & begins & ends).any():
            reasons.append(
                "an image smaller than its patch: give the box uncut and output_shape=, or "
                'crop="start" if the image is the first part of the patch'
            )
        raise LocationError(
            f"boxes smaller than the patches: {self._facts(wrong)}; only a box that ends with the "
            f"maps, which are {shape}, and does not begin with them, may be cut. Say what is meant: "
            + "; ".join(reasons)
        )

    def _facts(self, wrong: NDArray[np.intp]) -> str:
        cropped = "" if self.patch == self.whole else f", of which crop leaves {self.patch}"
        first = int(wrong[0])
        return (
            f"{self.label} has patches of {self.patch_shape}{cropped}, but {named(wrong, self.name)} "
            f"are others, the first being {self.boxes[first].tolist()}, {_plain(self.length[first])} pixels"
        )

    def _meant(self) -> Iterator[str]:
        """Yield each option that would explain it."""
        longest = self.length.max(axis=0)
        n = len(self.whole)
        if len(self.patch_shape) > n:
            other = self.patch_shape[:n] if self.is_channels_first else self.patch_shape[1:]
            if (longest <= np.array(other)).all():
                axes = "(n, h, w, C)" if self.is_channels_first else "(n, C, h, w)"
                yield f"channels_first={not self.is_channels_first} if patches are {axes}"
        if (longest <= np.array(self.whole)).all():
            yield (
                'crop="center" or the pixels on each side if patches have a halo, crop="start" if the box is '
                "the first part of its patch"
            )
        ratios = np.array(self.whole) / longest
        yield (
            f"scale={_scale_text(ratios)}, the pixels of the map a unit of the locations, if those are in "
            "pixels of another level than the patches"
        )


def _scale_text(ratios: NDArray[np.float64]) -> str:
    plain = [round(float(ratio), 6) for ratio in ratios[::-1]]
    return str(plain[0] if len(set(plain)) == 1 else plain)


def _plain(length: NDArray[Any]) -> tuple[Any, ...]:
    return tuple(round(float(each), 3) if length.dtype.kind == "f" else int(each) for each in length)

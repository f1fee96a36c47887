"""What a user may have meant whose patches do not fit their boxes."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.text import named
from accumulator.exceptions import LocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_OTHER: Final = 0  # how boxes fit their patches, from bad to good
_ALIKE: Final = 1
_SAME: Final = 2


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
    is_cropped: bool  # whether the user gave crop
    scale: NDArray[np.float64] | None  # that the user gave, in the order of the array's axes
    axes: str  # the order of the boxes' columns
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

    def refuse_shape(
        self, is_wrong: NDArray[np.bool_], shape: tuple[int, ...], fitting: tuple[int, ...]
    ) -> None:
        """Refuse boxes that are smaller than their patches, and cut where maps of another shape end."""
        wrong = np.flatnonzero(is_wrong.any(axis=1))
        if len(wrong):
            raise LocationError(
                f"boxes smaller than the patches: {self._facts(wrong)}; only a box that ends with the maps, "
                f"which are {shape}, may be cut, and the boxes end at {fitting}: give "
                f"output_shape={fitting}, which is in pixels of the map"
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
        """Yield each option that would explain it; where a transposition does it better, that alone."""
        longest, own = self.length.max(axis=0), np.array(self.patch)
        turned = list(self._transposed(longest))
        best = max([_fit(own, longest), *(_fit(patch, length) for _, patch, length in turned)])
        for words, patch, length in turned:
            if best and _fit(patch, length) == best:
                more = list(self._sizes(patch, length)) if best == _ALIKE else []
                yield f"{words}, together with {' or '.join(more)}" if more else words
        if _fit(own, longest) == best:
            yield from self._sizes(own, longest)

    def _transposed(self, longest: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        """Yield what the user would say if axes are in another order, and what patches and boxes are then."""
        n, own, turned = len(self.whole), np.array(self.patch), longest
        scale = np.ones(n) if self.scale is None else self.scale
        if list(self.axes) in (sorted(self.axes), sorted(self.axes)[::-1]):
            turned = (longest / scale)[::-1] * scale
        is_turned = bool((turned != longest).any())
        order = "are in the order of an array's axes" if self.axes[:1] == "x" else "name x first"
        axes = f'axes="{self.axes[::-1]}" if locations {order}'
        if is_turned:
            yield f"{axes}, or patches whose axes are the other way round", own, turned
        other = self.patch_shape[:n] if self.is_channels_first else self.patch_shape[1:]
        if len(self.patch_shape) > n and other != self.whole:
            patches = "(n, h, w, C)" if self.is_channels_first else "(n, C, h, w)"
            words = f"channels_first={not self.is_channels_first} if patches are {patches}"
            moved = np.array(other) - (np.array(self.whole) - own)
            yield words, moved, longest
            if is_turned:
                yield f"{words}, and {axes}", moved, turned

    def _sizes(self, patch: NDArray[Any], longest: NDArray[Any]) -> Iterator[str]:
        """Yield what makes boxes of such patches."""
        whole = patch + (np.array(self.whole) - np.array(self.patch))
        is_within = bool((longest < whole + 1).all())
        if is_within and self.is_cropped and _is_same(whole, longest):
            yield "no crop, as boxes are as large as whole patches"
        elif is_within and _is_same(patch, longest):
            yield 'crop="start" if the box is the first part of its patch'
        elif is_within:
            yield (
                'crop="center" or the pixels on each side if patches have a halo, crop="start" if the box is '
                "the first part of its patch"
            )
        if not _is_same(patch, longest) and (_is_scaled(patch, longest) or not _has_halo(patch, longest)):
            scale = 1 if self.scale is None else self.scale
            words = (
                f"scale={_scale_text(scale * patch / longest)}, the pixels of the map a unit of the "
                "locations, if those are in pixels of another level than the patches"
            )
            if not is_within and not self.is_cropped:
                words += " (with a halo too, give crop= first: scale is that of what it leaves)"
            yield words


def _fit(patch: NDArray[Any], longest: NDArray[Any]) -> int:
    """Return how well boxes fit: they are the patches, or differ from them alike on all axes, or not."""
    if _is_same(patch, longest):
        return _SAME
    return _ALIKE if _has_halo(patch, longest) or _is_scaled(patch, longest) else _OTHER


def _is_same(patch: NDArray[Any], longest: NDArray[Any]) -> bool:
    return bool((np.abs(patch - longest) < 1).all())


def _has_halo(patch: NDArray[Any], longest: NDArray[Any]) -> bool:
    more = patch - longest
    return bool(more[0] > 0 and (np.abs(more - more[0]) < 1).all())


def _is_scaled(patch: NDArray[Any], longest: NDArray[Any]) -> bool:
    return bool((np.abs(patch - longest * (patch[0] / longest[0])) < 1).all())


def _scale_text(ratios: NDArray[np.float64]) -> str:
    """Return factors in few digits, or as fractions where those are not exact."""
    plain = []
    for ratio in map(float, ratios[::-1]):
        fraction = Fraction(ratio).limit_denominator(9999)
        is_exact = round(ratio, 6) == ratio or float(fraction) != ratio
        plain.append(str(round(ratio, 6) if is_exact else fraction))
    return plain[0] if len(set(plain)) == 1 else f"[{', '.join(plain)}]"


def _plain(length: NDArray[Any]) -> tuple[Any, ...]:
    return tuple(round(float(each), 3) if length.dtype.kind == "f" else int(each) for each in length)

"""What a user may have meant whose patches do not fit their boxes."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.text import named
from accumulator.exceptions import LocationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

_OTHER: Final = 0  # how boxes fit their patches, from bad to good
_BOTH: Final = 1  # by a halo together with a scale
_ALIKE: Final = 2  # by one of them
_SAME: Final = 3
_EXACT: Final = 1e-6  # what floats may be off
_COLUMNS: Final = {
    "yx": "locations are in the order of an array's axes",
    "zyx": "locations are in the order of an array's axes",
    "xy": "locations name x first",
    "xyz": "locations name x first",
}  # which orders of columns have a name


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
        best = max([self._fit(own, longest), *(self._fit(patch, length) for _, patch, length in turned)])
        for words, patch, length in turned:
            if best and self._fit(patch, length) == best:
                more = [] if best == _SAME else list(self._sizes(patch, length))
                yield f"{words}, together with {' or '.join(more)}" if more else words
        if self._fit(own, longest) == best:
            yield from self._sizes(own, longest)

    def elsewhere(self, cut: NDArray[np.int64]) -> tuple[str, NDArray[np.int64]] | None:
        """Return what the user would say if channels are at the other end, and what ``cut`` leaves then."""
        n = len(self.whole)
        other = self.patch_shape[:n] if self.is_channels_first else self.patch_shape[1:]
        if len(self.patch_shape) == n or other == self.whole or (np.array(other) <= 2 * cut).any():
            return None
        patches = "(n, h, w, C)" if self.is_channels_first else "(n, C, h, w)"
        words = f"channels_first={not self.is_channels_first} if patches are {patches}"
        return words, np.array(other) - 2 * cut

    def _transposed(self, longest: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
        """Yield what the user would say if axes are in another order, and what patches and boxes are then."""
        own, known = np.array(self.patch), [longest]
        elsewhere = self.elsewhere((np.array(self.whole) - own) // 2)
        if elsewhere is not None:
            yield *elsewhere, longest
        for order in [self.axes[::-1], *map("".join, permutations(sorted(self.axes)))] if self.axes else ():
            turned = self._turned(longest, order)
            if any((turned == each).all() for each in known):
                continue
            known.append(turned)
            axes = f'axes="{order}" if {_COLUMNS.get(order, "columns are in that order")}'
            is_reverse = order == self.axes[::-1]
            yield axes + ", or patches whose axes are the other way round" * is_reverse, own, turned
            if elsewhere is not None:
                yield f"{elsewhere[0]}, and {axes}", elsewhere[1], turned

    def _turned(self, longest: NDArray[Any], order: str) -> NDArray[Any]:
        """Return how long boxes are, in pixels, if their columns are in another order."""
        scale, letters = self._factors, sorted(self.axes, reverse=True)
        was = dict(zip(letters, longest / scale, strict=True))
        now = dict(zip(order, (was[letter] for letter in self.axes), strict=True))
        return np.array([now[letter] for letter in letters]) * scale

    def _sizes(self, patch: NDArray[Any], longest: NDArray[Any]) -> Iterator[str]:
        """Yield what makes boxes of such patches."""
        whole, both = self._uncropped(patch), self._both(patch, longest)
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
        is_scaled = _is_scaled(patch, longest)
        if _is_same(patch, longest) or (_has_halo(patch, longest) and not is_scaled):
            return
        if _is_same(patch, longest / self._factors):
            yield "no scale, as boxes are as large as patches"
        elif both is not None and not is_scaled:
            yield (
                f"crop={both[0]} and scale={_scale_text(both[1])} if patches have a halo, and locations are "
                "in pixels of another level"
            )
        else:
            words = (
                f"scale={_scale_text(self._factors * patch / longest)}, the pixels of the map a unit of the "
                "locations, if those are in pixels of another level than the patches"
            )
            if not is_within and not self.is_cropped:
                words += " (with a halo too, give crop= first: scale is that of what it leaves)"
            yield words

    def _fit(self, patch: NDArray[Any], longest: NDArray[Any]) -> int:
        """Return how well boxes fit: they are the patches, or differ alike on all axes, or not."""
        if _is_same(patch, longest):
            return _SAME
        if _has_halo(patch, longest) or _is_scaled(patch, longest):
            return _ALIKE
        return _OTHER if self._both(patch, longest) is None else _BOTH

    def _both(self, patch: NDArray[Any], longest: NDArray[Any]) -> tuple[int, NDArray[Any]] | None:
        """Return the halo and the scale that explain it together, if levels are whole factors apart."""
        whole, length = self._uncropped(patch), longest / self._factors
        most, least = length.argmax(), length.argmin()
        if not whole[most] > whole[least]:
            return None
        factor = (whole[most] - whole[least]) / (length[most] - length[least])
        halo = (whole - factor * length) / 2
        cut = round(float(halo[0]))
        is_level = abs(max(factor, 1 / factor) - round(max(factor, 1 / factor))) < _EXACT
        if cut < 1 or not is_level or (np.abs(halo - cut) > _EXACT).any():
            return None
        return cut, np.full(len(whole), factor)

    def _uncropped(self, patch: NDArray[Any]) -> NDArray[Any]:
        uncropped: NDArray[Any] = patch + np.array(self.whole) - self.patch
        return uncropped

    @property
    def _factors(self) -> NDArray[np.float64]:
        """The scale that counts now."""
        return np.ones(len(self.whole)) if self.scale is None else self.scale


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

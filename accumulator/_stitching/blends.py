"""How patches are blended: what the user says of it, and what each pixel of a patch counts then."""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, get_args

import attrs
import numpy as np

from accumulator._inputs.arrays import as_array
from accumulator._inputs.options import by_plain_key
from accumulator.exceptions import OptionError
from accumulator.typing import BlendName, WindowName

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from accumulator.typing import ArrayLike, Blend, StorageOption

_SIGMA: Final = 0.125  # of a patch's length, as MONAI has it
_MOST_BITS: Final = 1000  # that a weight is lifted by: sums of them stay finite
_VOTE_BITS: Final = 42  # of the largest vote, a whole number: sums of 2,048 of them are exact in float64

CHOOSING: Final = ("last", "max", "min", "nearest", "vote")  # which make no value that no patch has
LABEL_BLENDS: Final[tuple[BlendName, ...]] = ("vote", "last", "max")  # which messages name


class Unsaid(str):
    """The default of an option, which is told from the same text where a user says it."""

    __slots__ = ()


DEFAULT_BLEND: Final = Unsaid("average")


def _ones(length: int) -> NDArray[np.float64]:
    return np.ones(length)


def _gaussian(length: int) -> NDArray[np.float64]:
    at = np.arange(length) - (length - 1) / 2
    weights: NDArray[np.float64] = np.exp(-((at / (_SIGMA * length)) ** 2) / 2)
    return weights


def _hann(length: int) -> NDArray[np.float64]:
    """Return Hann's window without its zeros at both ends, as torchio has it."""
    weights: NDArray[np.float64] = np.sin(np.pi * (np.arange(length) + 1) / (length + 1)) ** 2
    return weights


_WINDOWS: Final[Mapping[str | None, Callable[[int], NDArray[np.float64]]]] = {
    None: _ones,
    "gaussian": _gaussian,
    "hann": _hann,
}


@attrs.frozen(eq=False)
class Blending:
    """How the patches of a head are blended, whatever their shape."""

    name: str  # "average", or one of `CHOOSING`
    window: WindowName | NDArray[np.float64] | None = None  # None where all pixels count the same
    is_unsaid: bool = False

    def __str__(self) -> str:
        """Return what tells it from others."""
        window = self.window
        if window is None:
            return self.name
        said: str = (
            window if isinstance(window, str) else f"weights {sha256(window.tobytes()).hexdigest()[:8]}"
        )
        return said if self.name == "average" else f"{self.name} by {said}"


@attrs.frozen(eq=False)
class Window:
    """How patches of one spatial shape are blended."""

    blend: str  # "average", or one of `CHOOSING`
    # the weights axis by axis, whose product they are; None for the user's own
    lines: tuple[NDArray[np.float64], ...] | None
    weights: NDArray[np.float64]  # their product, in the patch's spatial shape; 0, or about 1 and more
    is_weighted: bool  # whether pixels count differently

    @property
    def is_sum(self) -> bool:
        """Whether patches are added and divided, rather than chosen from."""
        return self.blend not in CHOOSING

    @property
    def largest(self) -> float:
        """The largest weight."""
        return float(self.weights.max())

    @property
    def votes(self) -> NDArray[np.float64]:
        """The weights as whole numbers, so that sums of them are the same in any order."""
        votes = np.rint(np.ldexp(self.weights / self.largest, _VOTE_BITS))
        return np.where(self.weights > 0, np.maximum(votes, 1), 0)

    @property
    def distances(self) -> NDArray[np.int64]:
        """How far each pixel is from the patch's centre: the square of twice the distance."""
        total = np.zeros((), np.int64)
        for length in self.weights.shape:
            total = total[..., None] + (2 * np.arange(length, dtype=np.int64) - (length - 1)) ** 2
        return total


def as_blend(raw: StorageOption[Blend | ArrayLike]) -> Blending | dict[int | str, Blending]:
    """Return how patches of all heads are blended, or a dict by head."""
    given = by_plain_key("blend", raw)
    if isinstance(given, Mapping):
        return {key: _as_blending(each) for key, each in given.items()}
    return _as_blending(given)


def _as_blending(raw: Any) -> Blending:
    names: tuple[BlendName, ...] = get_args(BlendName)
    is_pair = isinstance(raw, (tuple, list)) and len(raw) == 2 and isinstance(raw[0], str)
    if is_pair and raw[0] == "vote":
        return Blending("vote", _as_window_option(raw[1]))
    if isinstance(raw, str) or is_pair:
        if raw not in names:
            raise OptionError(
                f'blend is {raw!r}: it is one of {", ".join(names)}; ("vote", window), whose window is '
                f"{' or '.join(get_args(WindowName))} or weights; or an array of weights"
            )
        if raw in get_args(WindowName):
            return Blending("average", _as_window_option(raw))
        return Blending(str(raw), None, isinstance(raw, Unsaid))
    return Blending("average", _as_window_option(raw))


def _as_window_option(raw: Any) -> WindowName | NDArray[np.float64]:
    """Return the name of a window, or weights of at least 0 whose largest is 1."""
    names: tuple[WindowName, ...] = get_args(WindowName)
    if isinstance(raw, str):
        if raw not in names:
            raise OptionError(
                f'blend is ("vote", {raw!r}): a window is one of {", ".join(names)}, or an array of weights'
            )
        return names[names.index(raw)]
    given = as_array(raw, "blend", OptionError)
    if given.dtype.kind not in "biuf":
        raise OptionError(f"blend is {type(raw).__name__}, not a name or an array of weights")
    weights = given.astype(np.float64)
    if weights.size == 0 or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise OptionError("blend has weights that are negative, infinite, NaN, or all zero")
    weights /= weights.max()
    return weights


def as_window(blending: Blending, patch: tuple[int, ...]) -> Window:
    """Return how patches of a spatial shape are blended."""
    given = blending.window
    if not isinstance(given, np.ndarray):
        lines = tuple(_lifted(_WINDOWS[given](length)) for length in patch)
        weights = np.ones(())
        # In the order in which `Summer` multiplies: a lone patch stays itself, but for a last digit.
        for line in reversed(lines):
            weights = line.reshape(-1, *(1 for _ in weights.shape)) * weights
        return Window(blending.name, lines, weights, given is not None)
    if patch not in {given.shape, (*given.shape, 1)}:  # a 1-d map has a second axis here
        raise OptionError(f"blend has weights of shape {given.shape}, but patches are {patch}")
    return Window(blending.name, None, _lifted(given.reshape(patch)), is_weighted=True)


def _lifted(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights times a power of two, so that the least is 1 or more.

    A product is then no smaller than the value, which may be near the least that its dtype has.
    """
    least = float(weights[weights > 0].min())
    return np.ldexp(weights, min(1 - math.frexp(least)[1], _MOST_BITS))

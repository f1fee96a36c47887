"""Where patches lie: the frame that the maps show of the plane, and each head's boxes in it.

A box is its patch. What is smaller than its patch, lies elsewhere or is far too large is refused, unless the
user said what is meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs
import numpy as np

from accumulator._inputs.arguments import FAR
from accumulator._inputs.text import named
from accumulator._stitching.boxes import Boxes, as_grid, pixels, shape_of
from accumulator._stitching.explain import Misfit
from accumulator._stitching.geometry import Filled, in_order
from accumulator.exceptions import HeadError, LocationError, OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._stitching.geometry import Geometry
    from accumulator._stitching.grid import Grid
    from accumulator.typing import Crop

_MOST_EMPTY: Final = 1000  # times its boxes: what a frame may be that nobody asked for


@attrs.frozen(eq=False)
class Lay:
    """How the patches of a head lie."""

    grid: Grid
    channels: tuple[int, ...]  # the shape behind the spatial axes: ``(C,)``, or nothing
    scale: tuple[float, ...]  # pixels of the map a unit of the locations, x first
    first: tuple[int, ...]  # the map's first pixel, of those that the location 0 would have, x first
    cut: tuple[int, ...]  # pixels of a patch that are left out on each side, in the order of the array's axes
    is_start: bool  # whether any box may be the first part of its patch
    is_spread: bool  # whether a patch is one value, that its whole box gets
    moves_channels: bool  # from the front to the end

    @property
    def shape(self) -> tuple[int, ...]:
        """The map's spatial shape."""
        return self.grid.shape[: self.grid.n_spatial]

    def weights(self, given: NDArray[Any]) -> NDArray[Any]:
        """Return what pixels count, of the part of patches that does, or of all one number."""
        if given.size != len(given):
            return self.cropped(given).reshape(len(given), *self.grid.patch)
        return given.reshape(len(given), *(1 for _ in self.grid.patch))

    @property
    def whole(self) -> tuple[int, ...]:
        """The spatial shape of patches as they are pushed."""
        patch = self.grid.patch[: self.grid.n_spatial]
        return tuple(length + 2 * cut for length, cut in zip(patch, self.cut, strict=True))

    @property
    def crop(self) -> Crop:
        """The same as an option that needs no look at the boxes."""
        return "start" if self.is_start else self.cut[::-1]

    @property
    def group(self) -> tuple[Any, ...]:
        """What heads have in common that share bands: all of their boxes are the same then."""
        return self.grid.shape, self.grid.patch, self.scale, self.is_spread

    def seen(self, patches: NDArray[Any]) -> NDArray[Any]:
        """Return the part of patches that counts, channels last: a view."""
        return self.cropped(np.moveaxis(patches, 1, -1) if self.moves_channels else patches)

    def cropped(self, patches: NDArray[Any]) -> NDArray[Any]:
        """Return the part of patches that counts, which are channels last or have none: a view."""
        if any(self.cut):
            axes = zip(self.cut, patches.shape[1:], strict=False)
            patches = patches[:, *(slice(cut, length - cut) for cut, length in axes)]
        return patches


@attrs.frozen(eq=False)
class Frame:
    """Boxes in the order of the array's axes, and what of the plane the maps show."""

    geometry: Geometry
    name: str  # of the locations, in messages
    start: NDArray[np.int64]  # (N, d)
    stop: NDArray[np.int64]
    first: NDArray[np.int64]  # (d,): the location of the maps' first pixel

    @property
    def origin(self) -> tuple[int, ...]:
        """The location of the maps' first pixel, x first."""
        return tuple(self.first[::-1].tolist())

    @property
    def shape(self) -> tuple[int, ...]:
        """The maps' spatial shape where no head has a scale or shape of its own."""
        asked = self.geometry.by_head["output_shape"]
        return tuple(self.size.tolist() if asked is None else asked)

    @property
    def size(self) -> NDArray[np.int64]:
        """From the maps' first pixel to the end of the last box, in the locations' unit."""
        size: NDArray[np.int64] = self.stop.max(axis=0, initial=-FAR) - self.first
        return size

    def lay(self, key: int | str, label: str, patch_shape: tuple[int, ...]) -> Lay:
        """Return how patches of a head lie; LocationError where they do not fit their boxes."""
        n, geometry = self.geometry.n_spatial, self.geometry
        if self._is_spread(key, label, patch_shape):
            return self._spread(key, label, patch_shape)
        if len(patch_shape) not in {n, n + 1} or 0 in patch_shape:
            raise HeadError(
                f"{label} has patch shape {patch_shape}: with locations of {2 * n} numbers a patch has {n} "
                "axes, or one more for channels; heads of one value a patch fill their boxes with "
                "spread=True; leave heads of another kind out, with stitch(batch, heads=[...])"
            )
        moves = bool(geometry.of("channels_first", key)) and len(patch_shape) > n
        whole = patch_shape[1:] if moves else patch_shape[:n]
        channels = patch_shape[:1] if moves else patch_shape[n:]
        factors, crop = geometry.of("scale", key), geometry.of("crop", key)
        scale = None if factors is None else in_order(factors, np.float64)
        boxes = Boxes.of(self, scale, geometry.of("output_shape", key), label)
        misfit = Misfit(
            label,
            patch_shape,
            whole,
            boxes.length,
            self.boxes,
            self.name,
            moves,
            crop is not None,
            scale,
            geometry.axes,
        )
        cut = self._cut(whole, crop, boxes, misfit)
        patch = np.array(whole) - 2 * cut
        start, stop, shape = boxes.laid(
            patch, attrs.evolve(misfit, patch=tuple(patch.tolist())), may_be_shorter=crop == "start"
        )
        scales = tuple(float(each) for each in factors or (1,) * n)
        grid = as_grid(start, stop, shape, tuple(patch.tolist()))
        first = tuple(pixels(self.first, scale)[::-1].tolist())
        return Lay(
            grid,
            channels,
            scales,
            first,
            tuple(cut.tolist()),
            is_start=crop == "start",
            is_spread=False,
            moves_channels=moves,
        )

    def _is_spread(self, key: int | str, label: str, patch_shape: tuple[int, ...]) -> bool:
        """Whether patches of a head are one value, or one a channel."""
        asked = self.geometry.by_head["spread"]
        if not self.geometry.of("spread", key):
            return False
        if len(patch_shape) <= 1:
            return True
        if isinstance(asked, dict):
            raise HeadError(
                f"{label} has patch shape {patch_shape}: spread is for heads with one value a patch, or one "
                "a channel, (n,) or (n, C)"
            )
        return False

    def _spread(self, key: int | str, label: str, channels: tuple[int, ...]) -> Lay:
        """Return how boxes lie that are filled, from the pixel where they begin to that where they end."""
        factors = self.geometry.of("scale", key)
        scale = None if factors is None else in_order(factors, np.float64)
        boxes = Boxes.of(self, scale, self.geometry.of("output_shape", key), label)
        stop = np.maximum(boxes.first + 1, boxes.last)
        shape = shape_of(stop, boxes.shape, label)
        n, asked = self.geometry.n_spatial, self.geometry.of("spread", key)
        patch = (stop - boxes.first).max(axis=0, initial=1)
        if isinstance(asked, Filled):
            patch = np.maximum(patch, asked.largest)
        # Others are the middle of the largest, where windows have theirs.
        before = (patch - (stop - boxes.first)) // 2
        return Lay(
            as_grid(boxes.first, stop, shape, tuple(patch.tolist()), before),
            channels,
            tuple(float(each) for each in factors or (1,) * n),
            tuple(pixels(self.first, scale)[::-1].tolist()),
            (0,) * n,
            is_start=True,
            is_spread=True,
            moves_channels=False,
        )

    @property
    def boxes(self) -> NDArray[np.int64]:
        """The locations as they were given."""
        halves = []
        for half in (self.start, self.stop):
            given = np.empty_like(half)
            given[:, self.geometry.columns] = half
            halves.append(given)
        return np.hstack(halves)

    def _cut(self, whole: tuple[int, ...], crop: Any, boxes: Boxes, misfit: Misfit) -> NDArray[np.int64]:
        """Return how many pixels of a patch are left out on each side."""
        none = np.zeros(len(whole), np.int64)
        if crop is None or crop == "start":
            return none
        if crop != "center":
            cut = in_order(crop)
            if (np.array(whole) <= 2 * cut).any():
                elsewhere = misfit.elsewhere(cut)
                raise OptionError(
                    f"{misfit.label} has patches of {whole}, of which crop={crop!r} (x first) leaves nothing"
                    + ("" if elsewhere is None else f"; {elsewhere[0]}")
                )
            return cut
        if not len(boxes.length):
            return none
        more = np.array(whole) - pixels(boxes.length.max(axis=0), None)
        if (more < 0).any():
            return none  # and the boxes are too large
        if len(misfit.patch_shape) > len(whole) and (more != more[0]).any():
            # What is no height could pass for one: the middle of 768 channels is a box like others.
            raise misfit.error(
                f"they have {tuple(more.tolist())} pixels more: give crop= as the pixels that are left out "
                "on each side, one number an axis (x first), or channels_first= if channels are elsewhere"
            )
        if (more % 2).any():
            raise misfit.error(
                'no pixel begins in their middle: crop them yourself, or give crop="start" or the pixels to '
                "be cut on each side"
            )
        longest = boxes.length >= boxes.length.max(axis=0)
        if ((more > 0) & ~(longest & ~boxes.may_be_cut).any(axis=0)).any():
            raise misfit.error(
                "all of them end where the maps end, and may have been cut there, so that nobody knows what "
                "the middle is: give crop= as the pixels that are left out on each side"
            )
        return more // 2


def as_frame(locs: NDArray[Any], geometry: Geometry, name: str = "full_output_locs") -> Frame:
    """Return the frame of locations ``[start_x, start_y, ..., end_x, end_y, ...]``, or refuse them."""
    n = geometry.n_spatial
    boxes = np.asarray(locs, dtype=np.int64)
    far = np.flatnonzero(((boxes > FAR) | (boxes < -FAR)).any(axis=1))
    if len(far):
        raise LocationError(f"coordinates beyond 2**61: {named(far, name)}")
    start, stop = boxes[:, :n][:, geometry.columns], boxes[:, n:][:, geometry.columns]
    wrong = np.flatnonzero((stop <= start).any(axis=1))
    if len(wrong):
        raise LocationError(
            f"no boxes: {named(wrong, name)}, the first being {boxes[wrong[0]].tolist()}; each end has to be "
            f"behind its start: {_columns(geometry)}{_of_sizes(boxes, n)}"
        )
    if geometry.origin == "min":
        first = start.min(axis=0) if len(start) else np.zeros(n, np.int64)
    else:
        first = in_order(geometry.origin or (0,) * n)
    frame = Frame(geometry, name, start, stop, first)
    is_unplaced = geometry.origin is None and geometry.by_head["output_shape"] is None
    if is_unplaced:
        _refuse_outside(frame)
    _check_shape(frame)
    if is_unplaced:
        _refuse_empty(frame)
    return frame


def _columns(geometry: Geometry) -> str:
    """Return what the columns of boxes are: ``[start_x, start_y, end_x, end_y]``."""
    axes = geometry.axes or [str(axis) for axis in range(geometry.n_spatial)]
    return f"[{', '.join(f'{half}_{axis}' for half in ('start', 'end') for axis in axes)}]"


def _of_sizes(boxes: NDArray[np.int64], n: int) -> str:
    """Return what is added where boxes may be starts and sizes."""
    ends = "; if these are [start, size], add the starts to the sizes"
    return ends if (boxes[:, n:] > 0).all() else ""


def _check_shape(frame: Frame) -> None:
    if not len(frame.start) and frame.geometry.by_head["output_shape"] is None:
        raise OptionError(
            f"{frame.name} is empty, so that the maps have no size of their own: give output_shape"
        )
    asked, origin = frame.geometry.by_head["output_shape"], frame.origin
    shapes = asked.values() if isinstance(asked, dict) else [asked]
    for shape in [frame.size.tolist() if each is None else each for each in shapes]:
        if min(shape) < 1:
            raise OptionError(
                f"the map would have the spatial shape {tuple(shape)}: nothing lies behind origin {origin}; "
                'give origin="min" for maps that begin with the first box, another origin, or output_shape'
            )


def _refuse_outside(frame: Frame) -> None:
    """Refuse boxes that no map without a word of the user's would show."""
    outside = np.flatnonzero((frame.stop <= 0).any(axis=1))
    if len(outside):
        raise LocationError(
            f"boxes that lie wholly outside of the maps, which begin at {list(frame.origin)}: "
            f"{named(outside, frame.name)}, the first being {frame.boxes[outside[0]].tolist()}; give "
            'origin="min" for maps that begin with the first box, or origin= or output_shape= for a region, '
            "out of which such boxes are left"
        )


def _refuse_empty(frame: Frame) -> None:
    """Refuse a frame that is hardly covered, before anything is made for it."""
    n = len(frame.start)
    area = float(frame.size.astype(np.float64).prod())
    covered = float((frame.stop - frame.start).astype(np.float64).prod(axis=1).sum())
    if area > _MOST_EMPTY * covered:
        raise LocationError(
            f"the maps would have the spatial shape {frame.shape}, {area:.4g} pixels, and all {n} boxes "
            f'together have {covered:.4g}: give origin="min" for maps that begin with the first box, here at '
            f"{frame.start.min(axis=0)[::-1].tolist()}, or output_shape={frame.shape} if they are to be so "
            "large"
        )

"""`StitchedMap`: the maps of all heads, and where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import attrs

from accumulator._inputs.heads import LOCATION, Heads, dimension_names
from accumulator._inputs.validation import as_place
from accumulator._pictures import plot_map
from accumulator._stitching.exported import Exported
from accumulator._stitching.grid import n_outside
from accumulator._stitching.kept import load_kept

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from accumulator._stitching.kept import Kept
    from accumulator._stores.format.store import FolderStore
    from accumulator.typing import RowArray, StrPath

_Map = TypeVar("_Map", bound="StitchedMap")


@attrs.frozen(eq=False, repr=False)
class StitchedMap(Exported):
    """One map a head, stitched from patches.

    Maps that did not fit in RAM lie in a temporary folder. It is removed when this object and its arrays are
    gone, when the interpreter ends, or at once by `close`; `save` keeps them.

    It is the mapping of its maps, as a `FullBatch` is of its heads: ``maps["mask"]``, or ``maps[0]``.

    Attributes
    ----------
    outputs : list or dict of ``(H, W, C)`` numpy.ndarray or zarr.Array
        One map a head: ``(H, W)`` for heads without channels, ``(Z, Y, X, C)`` for volumes, and so on. Pixels
        that no patch covers hold the fill value.
    origin : tuple of int
        The location ``(x, y, ...)`` of the first pixel.
    output_locs : (N, K) numpy.ndarray
        The locations that were asked for.
    written : (N,) bool numpy.ndarray
        Which of them have come.
    n_outside : int
        How many of them, come or not, lie wholly outside of the maps, by ``output_shape`` or ``origin``.

    See Also
    --------
    stitch : makes them of a result.
    Stitcher : makes them while the model runs.
    FullBatch : the rows of patches.
    """

    _counted: ClassVar[str] = "patches"

    outputs: list[RowArray] | dict[str, RowArray]
    origin: tuple[int, ...]
    output_locs: NDArray[Any]
    written: NDArray[np.bool_]
    _kept: Kept
    n_outside: int = attrs.field(default=0, kw_only=True)

    @property
    def n_stitched(self) -> int:
        """How many patches have any pixel in the maps."""
        return len(self._sheets[0].grid.is_inside) - n_outside([sheet.grid for sheet in self._sheets])

    def coverage(
        self, start: int = 0, stop: int | None = None, *, head: str | int | None = None
    ) -> NDArray[np.uint32]:
        """Return how many patches cover each pixel.

        Parameters
        ----------
        start : int, default 0
            The first row of the map, or plane of a volume.
        stop : int, optional
            One behind the last; by default all. A whole map takes 4 bytes a pixel.
        head : str or int, optional
            Of which map, where they have different shapes.

        Returns
        -------
        (H, W) uint32 numpy.ndarray
            0 where no patch is.

        Raises
        ------
        OptionError
            There is no such head, or there are maps of different shape and none is chosen; a ValueError.

        Examples
        --------
        >>> patches = np.ones((3, 2, 2), np.float32)
        >>> with Stitcher([[0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2]]) as stitcher:
        ...     stitcher.push(patches, [[0, 0, 2, 2], [1, 0, 3, 2], [4, 0, 6, 2]])
        >>> stitcher.finalize().coverage(0, 1).tolist()
        [[1, 2, 1, 0, 1, 1]]
        """
        if head is None and len(self._sheets) == 1:
            return self._sheets[0].coverage(start, stop)
        return self._sheet(self._one(head)).coverage(start, stop)

    def save(self, path: StrPath) -> None:
        """Keep the maps as a zarr group at ``path``, which `load` opens.

        `FullBatch.load` opens it too: its rows are rows of the maps. Maps of several shapes are a group each,
        in folders of it that are called 0, 1 and so on, and are copied.

        Parameters
        ----------
        path : path
            Where nothing is yet; folders above it are made.

        Raises
        ------
        ResultExistsError
            Something is there already; a FileExistsError.
        StorageError
            The disk refused; an OSError. Nothing is left at ``path``, and the maps are as they were.
        DamagedError
            Files of the maps are gone, or not what was written; an OSError. Nothing is left at ``path``.
        ClosedError
            The maps were closed; a ValueError.
        OptionError
            ``path`` is not a local path, or is in the maps' own temporary folder; a ValueError.
        """
        self._kept.save(path)

    @classmethod
    def load(cls, path: StrPath) -> Self:
        """Open maps that were kept by `save` or by ``store=``, as the maps they were.

        The maps stay on disk as read-only zarr arrays, whose chunks are compared with their checksums when
        they are read. Origin, scale, locations and which of them have come are those of then, so that
        `coverage`, plots and exports are the same.

        Parameters
        ----------
        path : path
            What `save` or ``store`` was given, or a link to it.

        Returns
        -------
        StitchedMap
            The maps.

        Raises
        ------
        ResultNotFoundError
            Nothing is at ``path``; a FileNotFoundError.
        ResultFormatError
            It holds no maps, those of an earlier version, or damaged ones; a ValueError.
        UnfinishedError
            It is the store of a stitcher that was not finalized; a ResultFormatError.
        StorageError
            The operating system does not let us look; an OSError.
        OptionError
            ``path`` is not a local path; a ValueError.

        Examples
        --------
        >>> with Stitcher([[8, 0, 10, 2]], origin="min") as stitcher:
        ...     stitcher.push(np.ones((1, 2, 2), np.float32), [[8, 0, 10, 2]])
        >>> stitcher.finalize().save("map.zarr")
        >>> maps = StitchedMap.load("map.zarr")
        >>> maps.origin, maps.coverage().tolist()
        ((8, 0), [[1, 1], [1, 1]])
        """
        return as_map(load_kept(as_place(path, "path")), cls)

    def plot(
        self, head: str | int | None = None, *, channel: int | None = None, ax: Axes | None = None
    ) -> list[Axes]:
        """Show one map by matplotlib, a panel a channel.

        Parameters
        ----------
        head : str or int, optional
            Which map, where there are several.
        channel : int, optional
            The only channel to be shown.
        ax : matplotlib Axes, optional
            Where; a new figure by default.

        Returns
        -------
        list of matplotlib Axes
            The panels.

        Raises
        ------
        MissingExtraError
            matplotlib is not installed, the extra ``plot``; an ImportError.
        OptionError
            There is no such head or channel, or the map is not 2-d; a ValueError.
        """
        key = self._one(head)
        self._check_is_plane(key)
        x, y = self._sheet(key).lay.first
        return plot_map(self._named[key], channel=channel, ax=ax, origin=(x, y), title=key)

    @property
    def _shown_locs(self) -> NDArray[Any]:
        starts = self._kept.frame.geometry.columns[::-1]
        return self.output_locs[:, [*starts, *(len(starts) + column for column in starts)]]

    @property
    def _more(self) -> str:
        return f", {self.n_outside} of all outside of the maps" if self.n_outside else ""

    @property
    def _dimensions(self) -> tuple[str, Heads[tuple[str, ...]]]:
        shapes = self._heads.like(tuple(array.shape) for array in self._heads)
        return LOCATION, dimension_names(shapes, self._n_spatial)

    @property
    def _attributes(self) -> Heads[dict[str, Any]]:
        scales = Heads.of(self.scale)
        return scales.like({"origin": self.origin, "scale": scale} for scale in scales)

    @property
    def _files(self) -> FolderStore | None:
        return self._sheets[0].rows._files  # noqa: SLF001  they are the same arrays

    @property
    def _all_files(self) -> Sequence[FolderStore]:
        return [files for sheet in self._sheets for files in sheet.rows._all_files]  # noqa: SLF001

    @property
    def _facts(self) -> dict[str, str]:
        return {"origin": str(self.origin)}


def as_map(kept: Kept, kind: type[_Map]) -> _Map:
    """Return the maps of all heads, in their order."""
    arrays = {
        head: array
        for sheet in kept.sheets
        for head, array in zip(sheet.heads, Heads.of(sheet.rows.outputs), strict=True)
    }
    outputs = Heads(tuple(arrays[head] for head in range(len(arrays))), kept.names).as_given()
    return kind(outputs, kept.frame.origin, kept.locs, kept.written, kept, n_outside=kept.n_outside)

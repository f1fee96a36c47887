"""How a result is looked at, and how it ends: a mapping of heads, in RAM or in files."""

from __future__ import annotations

import contextlib
import reprlib
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from accumulator._core.memory import available_memory
from accumulator._export import as_dask, as_xarray
from accumulator._inputs.heads import Heads, plain_key
from accumulator._inputs.text import listed
from accumulator._pictures import as_html, memory_text
from accumulator.exceptions import UnknownHeadError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import xarray
    from numpy.typing import NDArray

    from accumulator._stores.format.store import FolderStore
    from accumulator.typing import RowArray


class Result(Mapping["str | int", "RowArray"]):
    """One array a head, in RAM or in files that last until it is closed.

    It is the mapping of its heads, but equal to itself alone, and true even without heads: whoever asks
    ``if result`` wants to know whether there is one.
    """

    __slots__ = ()
    _counted: ClassVar[str]  # what `written` counts

    outputs: list[RowArray] | dict[str, RowArray]
    output_locs: NDArray[Any]
    written: NDArray[np.bool_]

    def __getitem__(self, head: str | int) -> RowArray:
        """Return a head by its name, or by its number where heads have no names."""
        known = dict(zip(self.names, self._heads, strict=True))
        try:
            return known[plain_key(head)]
        except (KeyError, TypeError):  # a list, or a mask, which has no hash
            asked = repr(head) if isinstance(head, str) else reprlib.repr(head)
            heads = listed(map(repr, known)) or "none"
            rows = f"; rows are taken of a head, as result[{next(iter(known))!r}][rows]" if known else ""
            raise UnknownHeadError(f"there is no head {asked}: the heads are {heads}{rows}") from None

    def __iter__(self) -> Iterator[str | int]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.outputs)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return object.__hash__(self)

    @property
    def names(self) -> tuple[str | int, ...]:
        """What the heads are called, in order: their names, or numbers from 0 where they have none."""
        return self._heads.keys

    @property
    def nbytes(self) -> int:
        """Bytes of all outputs; on disk gaps take none of them."""
        return sum(int(array.nbytes) for array in self._heads)

    def to_dask(self) -> list[Any] | dict[str, Any]:
        """Return the heads as dask arrays, which are read, and checked, when they are computed.

        A result in a temporary folder has to be saved first, if other processes are to compute: that is an
        UnsavedError otherwise.

        Returns
        -------
        list or dict of dask.array.Array
            As `outputs`, each of its head's shape and dtype; chunks are those stored, or shards.

        Raises
        ------
        MissingExtraError
            dask is not installed, the extra ``dask``; an ImportError. Computing may be a DamagedError.
        """
        return as_dask(self._heads).as_given()

    def to_xarray(self) -> xarray.Dataset:
        """Return the heads as variables of xarray, by name, with `output_locs` and `written` as coordinates.

        Axes are called as `accumulator` names them on disk: ``location``, then ``y``, ``x`` and ``channel``,
        or ``z``, ``y``, ``x`` and ``channel``; without channels only those in space. That of heads which
        differ in length is called by its head, ``mask_channel``. Patches ``(N, C, H, W)`` are not known as
        such: rename their axes. Heads without names are called ``"0"``, ``"1"`` and so on.

        Returns
        -------
        xarray.Dataset
            Variables in RAM share memory with `outputs`; those on disk are dask arrays, as of `to_dask`.

        Raises
        ------
        MissingExtraError
            xarray is not installed, or dask, the extra ``xarray``; an ImportError.
        HeadError
            A head is called as a coordinate or an axis is; a ValueError.
        """
        rows, dimensions = self._dimensions
        coordinates = {
            "output_locs": ((rows, "column"), self.output_locs),
            "written": ((rows,), self.written),
        }
        return as_xarray(self._heads, dimensions, coordinates, self._attributes)

    @property
    def path(self) -> Path | None:
        """The folder of the zarr group; None in RAM."""
        return None if self._files is None else self._files.root

    def close(self) -> None:
        """Remove the temporary folder of arrays that did not fit in RAM, which then refuse to be read.

        Arrays in RAM and what was saved stay as they are. A second call does nothing.

        Raises
        ------
        StorageError
            The folder cannot be removed; an OSError. It is tried again when the interpreter ends.
        """
        with contextlib.ExitStack() as shut:  # all of them, also if the system refuses one
            for files in self._all_files:
                shut.callback(files.shut)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Return heads, coverage and place in one line."""
        arrays = self._heads.by_name().items()
        heads = ", ".join(f"{name}: {tuple(array.shape)} {array.dtype}" for name, array in arrays)
        left = f", {self._n_left_out} left out" * bool(self._n_left_out)
        n_written = f"{self.written.sum()} of {len(self.written) - self._n_left_out} {self._counted}{left}"
        return f"<{type(self).__name__} {{{heads}}}, {n_written}{self._more}, {self._files or 'RAM'}>"

    def _repr_html_(self) -> str:
        """Return heads, coverage, memory and place as a notebook shows them; no value is read."""
        held = self.nbytes if self._files is None else 0
        facts = {**self._facts, "memory": memory_text(held, available_memory())}
        if self._files is not None:
            facts["stored in"] = str(self._files)
        heads = {name: (array.shape, str(array.dtype)) for name, array in self._heads.by_name().items()}
        return as_html(type(self).__name__, heads, facts, self._shown_locs, self.written, self._n_left_out)

    @property
    def _more(self) -> str:
        """What else is said of its rows."""
        return ""

    @property
    def _n_left_out(self) -> int:
        """How many locations will never come, as a mask leaves them out."""
        return 0

    @property
    def _shown_locs(self) -> NDArray[Any]:
        """The locations, x first."""
        return self.output_locs

    @property
    @abstractmethod
    def _dimensions(self) -> tuple[str, Heads[tuple[str, ...]]]:
        """What locations are called, and the axes of each head, as xarray names dimensions."""

    @property
    def _attributes(self) -> Heads[dict[str, Any]]:
        """What xarray is told of each head besides."""
        return self._heads.like({} for _ in self._heads)

    @property
    @abstractmethod
    def _files(self) -> FolderStore | None:
        """Where the arrays lie; None in RAM."""

    @property
    def _all_files(self) -> Sequence[FolderStore]:
        return [] if self._files is None else [self._files]

    @property
    @abstractmethod
    def _facts(self) -> dict[str, str]:
        """What else a notebook shows."""

    @property
    def _heads(self) -> Heads[RowArray]:
        return Heads.of(self.outputs)

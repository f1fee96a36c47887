"""`FullBatch`: what an accumulator hands over, and how it is kept."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, ClassVar, Self

import attrs
import numpy as np

from accumulator._core.lifecycle import Covered
from accumulator._core.memory import available_memory
from accumulator._core.result import Result
from accumulator._inputs.heads import LOCATION, dimension_names
from accumulator._inputs.validation import HeadSpec, as_place, as_target
from accumulator._pictures import left_out
from accumulator._stores.files.target import reaching, staged
from accumulator._stores.format.arrays import read_only, storage_of
from accumulator._stores.format.names import head_keys
from accumulator._stores.format.store import FolderStore
from accumulator._stores.reading.check import LateChecker, RowChecker, make_checksums
from accumulator._stores.reading.saved import open_result
from accumulator._stores.writing.record import complete_result
from accumulator._stores.writing.zarr_rows import ZarrRows, copy_rows
from accumulator.exceptions import OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import TypeAlias

    from numpy.typing import NDArray

    from accumulator._core.canvas import Canvas
    from accumulator._inputs.heads import Heads
    from accumulator._inputs.options import Storage
    from accumulator.typing import RowArray, StrPath

    Note: TypeAlias = Callable[[Path], None]


@attrs.frozen(eq=False, repr=False)
class FullBatch(Result, Covered):
    """A complete result: every head in canonical order, and which rows are real.

    It is the mapping of its heads: ``batch["mask"]``, or ``batch[0]`` where heads have no names, with `keys`,
    `values`, `items`, `len` and `in`. Another key is an UnknownHeadError, a KeyError. A head on disk is a
    zarr.Array that takes each index that NumPy takes.

    A result that did not fit in RAM lies in a temporary folder. It is removed when this object and its arrays
    are gone, when the interpreter ends, or at once by `close`; `save` keeps it. Until then copying it, or
    sending it to another process, is an UnsavedError. Reading files that somebody has removed or changed is a
    DamagedError.

    Attributes
    ----------
    outputs : list or dict of ``(N, *patch_shape)`` numpy.ndarray or zarr.Array
        One array a head, with the fill value (zeros) where nothing was predicted; a dict where named heads
        were pushed.
    output_locs : (N, K) numpy.ndarray
        The location of each row, in canonical order.
    written : (N,) bool numpy.ndarray
        Whether a row is a real prediction (True) or padding (False).

    See Also
    --------
    FullBatchAccumulator : makes it.
    stitch : blends its patches into maps.

    Examples
    --------
    >>> with FullBatchAccumulator([[0, 0], [4, 0], [8, 0]]) as accumulator:
    ...     accumulator.push({"score": np.ones((2, 1))}, [[0, 0], [8, 0]])
    >>> batch = accumulator.finalize()
    >>> batch["score"].ravel().tolist()
    [1.0, 0.0, 1.0]
    >>> batch.written.tolist()
    [True, False, True]
    >>> batch.save("result.zarr")
    >>> kept = FullBatch.load("result.zarr")
    >>> kept["score"][kept.written].tolist()
    [[1.0], [1.0]]
    """

    _counted: ClassVar[str] = "written"

    outputs: list[RowArray] | dict[str, RowArray]
    output_locs: NDArray[Any]
    written: NDArray[np.bool_]
    _store: FolderStore | None = None  # None in RAM
    _storage: tuple[Storage, ...] = ()  # how heads in RAM are to be saved, where that was said
    _is_partial: bool = False  # loaded from a run under way, whose other rows mean nothing
    # Rows that were to come, where that is known.
    _n_expected: int | None = attrs.field(default=None, kw_only=True)

    @property
    def missing_locs(self) -> NDArray[Any]:
        """The locations that no prediction came for, in canonical order: ``(n, K)``."""
        return self.output_locs[~self.written]

    def save(self, path: StrPath) -> None:
        """Keep the result as a zarr group at ``path``.

        A result in a temporary folder on the same file system is moved, after it was read once for its
        checksums, and its arrays then read from there. Any other is copied. At ``path`` is a whole result or
        nothing. Of a run that is not complete, what was recorded when it was loaded is saved; that cannot be
        resumed.

        Parameters
        ----------
        path : path
            Where nothing is yet; folders above it are made.

        Raises
        ------
        ResultExistsError
            Something is there already; a FileExistsError.
        StorageError
            The disk refused; an OSError. Nothing is left at ``path``, and this result is as it was.
        DamagedError
            Files of this result are gone, or not what was written; an OSError. Nothing is left at ``path``.
        ClosedError
            The result was closed; a ValueError.
        OptionError
            ``path`` is not a local path, or is in this result's own temporary folder; a ValueError.
        HeadDtypeError
            A head in RAM has a dtype that zarr cannot store (long double); a TypeError.
        """
        self._save(path)

    @classmethod
    def load(cls, path: StrPath, *, partial: bool = False) -> Self:
        """Open a saved result; its outputs stay on disk as read-only zarr arrays.

        Every chunk is compared with its checksums when it is read first, and when its file was changed since.
        Where they differ, reading raises
        DamagedError, an OSError. A store may come from a stranger: nothing in it is run, and nothing in it
        leads to files elsewhere.

        Parameters
        ----------
        path : path
            The path that was given to `save`, or as ``store`` to a run that finished, or a link to it; no
            link inside it is followed.
        partial : bool, default False
            Open a run that is not complete, too. `written` says what it has recorded so far; other rows mean
            nothing. A process that is writing it is not disturbed; load again to see what came since.

        Returns
        -------
        FullBatch
            The result.

        Raises
        ------
        ResultNotFoundError
            Nothing is at ``path``; a FileNotFoundError.
        ResultFormatError
            It is not a saved result, or its parts do not belong together; a ValueError.
        UnfinishedError
            It is a run that is not complete, and ``partial`` is False; a ResultFormatError.
        StorageError
            The operating system does not let us look; an OSError.
        OptionError
            ``path`` is not a local path; a ValueError.
        """
        source = as_place(path, "path")
        saved = open_result(source, is_partial=partial, most_nbytes=available_memory())
        store = FolderStore(source, read_only=True)
        arrays: list[RowArray] = list(RowChecker(saved).guarded(store))
        outputs = saved.heads.like(arrays).as_given()
        return cls(
            outputs,
            saved.output_locs,
            saved.written.copy(),
            store,
            is_partial=not saved.mark.is_complete,
            n_expected=saved.mark.n_expected,
        )

    @property
    def _coverage(self) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return self.output_locs, self.written

    @property
    def _dimensions(self) -> tuple[str, Heads[tuple[str, ...]]]:
        in_ram = [each.dimension_names for each in self._storage] if self._store is None else []
        told = in_ram or [storage_of(array).dimension_names for array in self._heads]
        names = dimension_names(self._heads.like(array.shape for array in self._heads))
        if told and all(told):  # of maps, whose rows are no locations
            names = names.like(each or () for each in told)
        return next((each[0] for each in names), LOCATION), names

    @property
    def _n_left_out(self) -> int:
        return left_out(len(self.written), int(np.count_nonzero(self.written)), self._n_expected)

    @property
    def _files(self) -> FolderStore | None:
        return self._store

    @property
    def _facts(self) -> dict[str, str]:
        place = "RAM" if self._store is None else f"zarr, {'closed' if self._store.is_closed else 'open'}"
        return {"state": f"{place}, of a run under way" if self._is_partial else place}

    def _save(self, path: StrPath, note: Note | None = None) -> None:
        """Save it, with what ``note`` writes into its folder before it is complete."""
        target, store = self._target(path), self._store
        if store is None or store.folder is None or not self._move(store, target, note):
            with staged(target) as place:
                self._copy(place, note)

    def _target(self, path: StrPath) -> Path:
        """Return where the result may be saved, or refuse that."""
        target, store = as_target(path, "path"), self._store
        if store is not None and store.is_closed:
            _ = store.root  # raises what says where its files are
        if store is not None and store.folder is not None and target.is_relative_to(store.folder.path):
            raise OptionError(f"path {target} is in the temporary folder of this result: save elsewhere")
        return target

    def _complete(
        self, store: FolderStore, checksums: Sequence[NDArray[np.uint64]], note: Note | None
    ) -> None:
        if note is not None:
            note(store.root)
        complete_result(store, self._heads, self.output_locs, self.written, checksums, self._n_expected)

    def _move(self, store: FolderStore, target: Path, note: Note | None) -> bool:
        """Move a spilled result that was not saved before; return False where it has to be copied."""
        with reaching(target):
            self._complete(store, make_checksums(self._heads.values, self.written), note)
            try:
                store.move_to(target)
                store.watch(LateChecker(target))
            except OSError as cause:
                if cause.errno == errno.EXDEV:
                    return False
                raise
        return True

    def _copy(self, place: Path, note: Note | None = None) -> None:
        """Write all rows that hold anything to a new folder."""
        store = FolderStore(place)
        in_zarr = [storage_of(array) for array in self._heads]
        storage = in_zarr if self._store is not None else self._storage or in_zarr
        if self._store is None:  # else axes are called as they are there, or nothing by an earlier version
            named = zip(storage, self._dimensions[1], strict=True)
            storage = [attrs.evolve(each, dimension_names=names) for each, names in named]
        specs = [
            HeadSpec(array.shape[1:], array.dtype, each)
            for array, each in zip(self._heads, storage, strict=True)
        ]
        keys = head_keys(self._heads.names, len(specs))
        rows = ZarrRows(store, len(self.written), specs, keys=keys, has_checksums=True)
        try:
            copy_rows(self._heads.values, rows, self.written, only_written=self._is_partial)
        finally:
            rows.close()
        self._complete(store, rows.checksums, note)


def hand_over(canvas: Canvas, locs: NDArray[Any], *, is_partial: bool = False) -> FullBatch:
    """Return all rows of a canvas, which takes no more; a run that is kept is complete then.

    It ``is_partial`` where others have rows of the run, too.

    StorageError if the disk refuses the last rows, which are not lost.
    """
    canvas.flush()
    canvas.complete()
    store, arrays = canvas.readable()
    heads = canvas.specs.like(arrays).as_given()
    storage = tuple(spec.storage for spec in canvas.specs)
    if not is_partial:
        locs = locs.copy()  # else it is in a file, which nobody changes
    return FullBatch(
        heads,
        locs,
        canvas.written.copy(),
        store,
        storage,
        is_partial=is_partial,
        n_expected=canvas.n_expected,
    )


def as_read_only(array: RowArray) -> RowArray:
    """Return a view of an array that cannot be written."""
    if not isinstance(array, np.ndarray):
        return read_only(array)
    array = array.view()
    array.flags.writeable = False
    return array

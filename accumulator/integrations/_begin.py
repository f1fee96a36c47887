"""How an engine begins a part, and learns what nobody has recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import FullBatch, FullBatchAccumulator
from accumulator._inputs.validation import as_locations, as_place
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.shared import SharedRun
from accumulator._stores.reading.saved import open_mark
from accumulator.exceptions import OptionError, ResultNotFoundError, ResumeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from accumulator._inputs.ranks import Rank
    from accumulator.typing import ArrayLike, StrPath

_OURS: Final = ("mode", "rank", "world_size")


class OneRun:
    """What an engine is given, and what it tells before and after it has run."""

    def _take(self, locs: ArrayLike, store: StrPath, options: dict[str, Any]) -> None:
        """Check arguments; the store becomes one for processes that work in other folders."""
        taken = sorted(set(options) & set(_OURS))
        if taken:
            raise OptionError(f"{', '.join(taken)} cannot be given here: who writes which part is known")
        self._locs, self._store = as_locations(locs, "locs"), as_place(store, "store")
        # A process that failed is tried again, and samplers repeat rows: that is no error.
        self._options = {"on_duplicate": "first", **options}

    def _begin(self, who: Rank) -> FullBatchAccumulator:
        """Begin a part as the engine says who it is.

        A cluster's environment may say something else of this process, or only half of it: the SLURM job that
        Ray runs in has tasks of its own, and Lightning sets WORLD_SIZE without RANK.
        """
        told: Any = who  # which says more than two numbers
        return FullBatchAccumulator(self._locs, store=self._store, mode="a", rank=told, **self._options)

    def missing_rows(self) -> NDArray[np.intp]:
        """Return which rows of ``locs`` nobody has recorded: those to predict, by all processes together.

        Returns
        -------
        (m,) int numpy.ndarray
            Row numbers, rising; all where there is no store. The store is only read.

        Raises
        ------
        ResumeError
            ``store`` is that of other locations, or of another ``resume_token``; a ValueError.
        ResultFormatError
            ``store`` is damaged, or something else; a ValueError.
        StorageError
            The operating system does not let us look; an OSError.
        """
        shared = SharedRun.find(self._store)
        if shared is not None:
            stored, recorded, token = shared.locations(), recorded_rows(shared), shared.terms.resume_token
        else:
            try:
                with FullBatch.load(self._store, partial=True) as batch:
                    stored, recorded = batch.output_locs, batch.written
            except ResultNotFoundError:
                return np.arange(len(self._locs))
            token = open_mark(self._store).resume_token
        self._compare(stored, token)
        return np.flatnonzero(~recorded)

    def _compare(self, stored: NDArray[Any], token: str | None) -> None:
        """Refuse a store of another run, whose rows would be taken for this one's."""
        if not np.array_equal(stored, self._locs):
            raise ResumeError(
                f"{self._store} is the store of other locations, or of another order: give another path"
            )
        given = self._options.get("resume_token")
        if token != given:
            raise ResumeError(
                f"{self._store} is that of another run: resume_token is {token!r} there and {given!r} here: "
                "give another path, or the same token if the model is the same"
            )

    @property
    def result(self) -> FullBatch:
        """The published result.

        Errors are those of `FullBatch.load`, which tell that there is none yet, and ResumeError, as for
        `missing_rows`.
        """
        batch = FullBatch.load(self._store)
        try:
            self._compare(batch.output_locs, open_mark(self._store).resume_token)
        except BaseException:
            batch.close()
            raise
        return batch

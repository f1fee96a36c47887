"""How one of several processes begins: it finds what all have in common, or makes it, and begins its part."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from accumulator._core.locations import LocationIndex
from accumulator._inputs.arguments import check_expected
from accumulator._inputs.validation import as_locations, as_specs
from accumulator._inputs.warn import warn
from accumulator._stores.files.ownership import is_locked
from accumulator._stores.files.system import is_partial
from accumulator._stores.format.arrays import layout_of
from accumulator._stores.format.mark import CREATING, hash_locations
from accumulator._stores.kept.fit import check_run
from accumulator._stores.ranks.facts import living
from accumulator._stores.ranks.part import PartRun
from accumulator._stores.ranks.recorded import recorded_rows
from accumulator._stores.ranks.share import block_rows, is_of, share
from accumulator._stores.ranks.shared import SharedRun, make_array, terms_of
from accumulator._stores.reading.saved import is_map, open_mark, open_result
from accumulator.exceptions import LockedError, ResultExistsError, ResumeError, StorageError, StorageWarning

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from accumulator._inputs.heads import Heads
    from accumulator._inputs.options import HeadOptions
    from accumulator._inputs.ranks import Rank
    from accumulator._inputs.validation import HeadSpec
    from accumulator.typing import ArrayLike, OnDuplicate

_PATIENCE_SECONDS: Final = 60.0  # while whoever publishes removes what was published
_PAUSE_SECONDS: Final = 0.05


@attrs.frozen(eq=False)
class Together:
    """One of several processes that work on one run: its part, and which rows are its share."""

    who: Rank
    part: PartRun
    block: int  # rows that follow each other in a share

    def is_mine(self, rows: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Return which rows are this rank's."""
        return is_of(rows, self.block, self.who.rank, self.who.world_size)

    def share(self) -> NDArray[np.intp]:
        """Return this rank's rows, rising."""
        return share(self.part.shared.terms.n_rows, self.block, self.who.rank, self.who.world_size)

    def recorded(self) -> NDArray[np.bool_]:
        """Return which rows anybody has recorded by now: ``(N,)``."""
        return recorded_rows(self.part.shared)


def join(  # noqa: PLR0913, PLR0917  what ranks agree on
    store: str,
    who: Rank,
    full_output_locs: ArrayLike,
    declared: Heads[NDArray[Any]] | None,
    options: HeadOptions,
    on_duplicate: OnDuplicate,
    resume_token: str | None,
    write_patches: Callable[[Path], None] | None = None,
    n_expected: int | None = None,
) -> tuple[LocationIndex, Together]:
    """Begin a part of the run in a store, which is made where nobody has.

    Rows of maps are the locations where ``write_patches`` writes the record of their patches into a folder.

    Errors are those of `LocationIndex`, of `KeptRun.claim`, and of options that do not fit heads that are
    declared. Nothing of the part is left then.
    """
    root, locs = Path(store), as_locations(full_output_locs, "full_output_locs")
    check_expected(n_expected, len(locs))
    specs = None if declared is None else as_specs(declared, options)
    is_of_maps = write_patches is not None
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        shared = SharedRun.find(root)
        if shared is None:
            try:
                other = _heads_of_other_run(root, locs, resume_token)
            except (ResultExistsError, LockedError):
                if SharedRun.find(root) is not None:
                    continue  # what is there another rank has made just now
                raise
            arrays: dict[str, tuple[list[int], str]] = {}
            known, is_joined = specs if other is None else other, other is not None
            try:
                with SharedRun.making(root) as place:
                    LocationIndex(locs, make_array(place, arrays))
                    terms = terms_of(
                        locs,
                        resume_token,
                        on_duplicate,
                        known,
                        arrays,
                        is_joined=is_joined,
                        is_of_maps=is_of_maps,
                        n_expected=n_expected,
                    )
                    shared = SharedRun.make(root, place, terms, known, write_patches)
            except StorageError as cause:
                if cause.errno == errno.ENOENT and SharedRun.find(root) is not None:
                    continue  # another rank was faster, and what it has is being published already
                raise
        given = terms_of(
            locs,
            resume_token,
            on_duplicate,
            specs,
            {},
            is_joined=False,
            is_of_maps=is_of_maps,
            n_expected=n_expected,
        )
        shared.check(given)
        if shared.wait_is_over():
            found = shared.index_arrays(locs)
            index = LocationIndex.over(
                found["locations"], found.get("exact", found["locations"]), found["keys"], found.get("order")
            )
            _compare_with_living(shared, who)
            part = PartRun.begin_part(shared, who, index.locs)
            if shared.is_open:
                block = block_rows(len(index), shared.terms.unit_rows, who.world_size)
                return index, Together(who, part, block)
            part.release()  # what there was has been published just now
        if time.monotonic() > deadline:
            what = "the parts of this store are being removed, as they are published: try again"
            raise LockedError(errno.EAGAIN, what, store)
        time.sleep(_PAUSE_SECONDS)


def _compare_with_living(shared: SharedRun, who: Rank) -> None:
    """Refuse a world size that is not that of ranks at work; tell of one that is the same rank as this."""
    for other in [] if who.is_of_pool else living(shared.folder):
        if other.world_size not in {0, who.world_size}:
            raise ResumeError(
                f"{shared.root} is being written by {other}, and world_size is {who.world_size}: wait until "
                "that has ended, or end it"
            )
        if other.world_size and other.rank == who.rank:
            warn(
                f"{shared.root} is being written by {other}, too: what both predict is right, and done twice",
                StorageWarning,
            )


def _heads_of_other_run(root: Path, locs: NDArray[Any], resume_token: str | None) -> Heads[HeadSpec] | None:
    """Return the heads of a run of one process that several go on with; refuse what else is there."""
    if is_locked(root):
        what = "a process that works alone is writing this store: wait until it has ended"
        raise LockedError(errno.EAGAIN, what, str(root))
    names = [path.name for path in root.iterdir() if not is_partial(path.name)] if root.exists() else []
    if not names:
        return None
    if "zarr.json" not in names:
        what = "the folder holds other things: give another path"
        raise ResultExistsError(errno.EEXIST, what, str(root))
    if is_map(root):
        what = "published maps are there: StitchedMap.load opens them; give another path, or remove them"
        raise ResultExistsError(errno.EEXIST, what, str(root))
    mark = open_mark(root)
    if mark.state == CREATING:
        what = "a run has begun there, and recorded nothing: remove it, or give another path"
        raise ResultExistsError(errno.EEXIST, what, str(root))
    given = attrs.evolve(mark, n_rows=len(locs), locations=hash_locations(locs), resume_token=resume_token)
    check_run(root, mark, given)
    saved = open_result(root, is_partial=True)
    return saved.heads.like(layout_of(array).spec for array in saved.arrays)

"""All groups of heads of a stitcher: a push goes to each of them, and their maps are made together."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import attrs
import numpy as np

from accumulator._core.memory import available_memory, buffer_nbytes, fits_in_memory
from accumulator._inputs import tuning
from accumulator._inputs.heads import Heads
from accumulator._inputs.text import as_text, named
from accumulator._inputs.validation import as_stored_heads, check_specs
from accumulator._pictures.progress import memory_state
from accumulator._stitching.batch import Batch, Waiting
from accumulator._stitching.given import as_weights
from accumulator._stitching.grid import n_outside
from accumulator._stitching.groups import as_groups, let_go, open_all
from accumulator._stitching.heads import lay_heads, warn_of_mean, warn_of_passes
from accumulator._stitching.kept import Kept, facts_of, note
from accumulator._stitching.passes import Passes
from accumulator._stores.memory.row_numbers import without_repeats
from accumulator._stores.writing.patches import expect_no_patches, expect_patches
from accumulator.exceptions import (
    ClosedError,
    DuplicateLocationError,
    LocationError,
    MemoryLimitError,
    OptionError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from accumulator._core.canvas import Canvas
    from accumulator._inputs.validation import HeadSpec
    from accumulator._stitching.bands import Bands
    from accumulator._stitching.delivery import Delivery
    from accumulator._stitching.frame import Lay
    from accumulator._stitching.groups import Group
    from accumulator._stitching.request import Request
    from accumulator._stores.kept.run import KeptRun

_SomeBands = TypeVar("_SomeBands", bound="Bands")


@attrs.define(eq=False)
class Deliveries:
    """One delivery for each group of heads, none before heads are known.

    Patches count as written once they are taken. They are blended, and bands delivered, by another thread
    where the loop has something else to do meanwhile, or else at once.
    """

    request: Request
    written: NDArray[np.bool_]  # which boxes have come
    left_out: NDArray[np.bool_]  # which will not come
    specs: Heads[HeadSpec] = attrs.field(factory=Heads)
    told_by: str = "the first batch"  # what the heads are, in messages
    each: Sequence[Delivery[Any]] = ()
    has_weights: bool = False  # whether batches come with weights
    is_small: bool = False  # whether maps may be in RAM, where bands are made in place
    is_ending: bool = False  # bands were delivered that patches may be missing in
    _blended: NDArray[np.bool_] = attrs.field(init=False)  # which boxes are in the bands
    _waiting: Waiting = attrs.field(factory=Waiting)
    _is_taking: bool = False  # a batch that is not known to be taken
    _is_torn: bool = False  # some groups have a batch, and others have not

    @_blended.default
    def _none(self) -> NDArray[np.bool_]:
        return np.zeros_like(self.written)

    def start(
        self, heads: Heads[NDArray[Any]], kind: type[_SomeBands], *, has_weights: bool = False
    ) -> list[Delivery[_SomeBands]]:
        """Fix the heads, and return what takes bands of such a kind; nothing has changed if this raises."""
        request = self.request
        specs = request.specs_of(heads)
        groups = as_groups(request, specs, has_weights=has_weights)
        blendings = request.blendings(specs.keys)
        if request.is_averaged:
            warn_of_passes(specs, blendings)
        for group in groups:
            warn_of_mean(specs, blendings, group.heads.values, group.grid)
        if request.on_band is not None and len(groups) > 1 and specs.names is None:
            raise OptionError(
                "heads whose boxes differ in pixels, or of which some are spread, come to on_band in calls "
                "of their own: push named heads, a dict"
            )
        deliveries = self._open(groups, kind)
        self.specs, self.each, self.has_weights = specs, deliveries, has_weights
        return deliveries

    def _open(self, groups: Sequence[Group], kind: type[_SomeBands]) -> list[Delivery[_SomeBands]]:
        """Make the canvases, and what delivers bands to them; nothing is left if this raises."""
        request = self.request
        canvases: list[Canvas] = []
        deliveries: list[Delivery[_SomeBands]] = []
        with contextlib.ExitStack() as undone:
            undone.callback(let_go, canvases)
            open_all(groups, request.budget, request.store, canvases)
            nbytes = sum(canvas.nbytes for canvas in canvases)
            self.is_small = fits_in_memory(nbytes, 0, tuning.now.small_percent)
            most_nbytes = buffer_nbytes(tuning.now.waiting_nbytes, request.budget.memory_limit)
            self._waiting.most_nbytes = most_nbytes
            for group, canvas in zip(groups, canvases, strict=True):
                delivery = self._deliver(group, kind, canvas)
                undone.callback(delivery.close)
                deliveries.append(delivery)
            if request.is_averaged:
                _average_all(deliveries, request)
            if request.store is not None:
                undone.callback(expect_no_patches, Path(request.store))
                expect_patches(Path(request.store))
            undone.pop_all()
        return deliveries

    def _deliver(self, group: Group, kind: type[_SomeBands], canvas: Canvas) -> Delivery[_SomeBands]:
        left_out, is_small = self.left_out, self.is_small
        return group.deliver(kind, canvas, self._blended, left_out, self.request, is_small=is_small)

    def weigh(self, raw: Any, n: int, heads: Heads[NDArray[Any]]) -> list[Any]:
        """Return what pixels of a batch count, for each head, from what the user says, or refuse that."""
        if self.request.is_averaged:
            raise OptionError(
                'weights cannot be given with on_duplicate="average", where boxes count as the mean of passes'
            )
        if self.each and not self.has_weights and self.written.any():
            raise OptionError(
                "weights come with this batch, and did not with those before: push them from the first "
                "batch on; a batch without weights counts as one with ones"
            )
        return as_weights(
            raw, None, n, self._lays or lay_heads(self.request.frame, self.request.specs_of(heads))
        )

    @property
    def _lays(self) -> Heads[Lay]:
        """How the patches of each head lie; nothing before heads are known. To find out takes all boxes."""
        lays = {
            head: lay
            for each in self.each
            for head, lay in zip(each.group.heads, each.group.lays, strict=True)
        }
        return Heads(tuple(lays[head] for head in range(len(lays))), self.specs.names)

    def take_weights(self, kind: type[Bands]) -> None:
        """Make bands that know of weights, where heads were declared and nothing has come."""
        if self.has_weights:
            return
        groups = as_groups(self.request, self.specs, has_weights=True)
        canvases = [each.canvas for each in self.each]
        for each in self.each:
            each.close()
        self.each = [
            self._deliver(group, kind, canvas) for group, canvas in zip(groups, canvases, strict=True)
        ]
        self.has_weights = True

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        return sum(each.canvas.nbytes for each in self.each)

    @property
    def open_nbytes(self) -> int:
        """Bytes of memory that the open bands take, and batches that wait to be blended."""
        return self._waiting.nbytes + sum(int(each.bands.nbytes) for each in self.each)

    @property
    def run(self) -> KeptRun | None:
        """The first store, if maps are kept."""
        return self.each[0].canvas.run if self.each else None

    @property
    def n_unrecorded(self) -> int:
        """How many rows of maps that are kept are not recorded."""
        return sum(each.canvas.n_unrecorded for each in self.each)

    @property
    def is_torn(self) -> bool:
        """Whether an interrupt left a push half-done, or a lack of memory."""
        return self._is_taking or (not self._waiting.thread.is_at_work and self._is_half_way)

    @property
    def _is_half_way(self) -> bool:
        return self._is_torn or any(each.is_torn for each in self.each)

    @property
    def is_calling(self) -> bool:
        """Whether on_band is called, which must not push."""
        return any(each.is_calling for each in self.each)

    def fit(self, heads: Heads[NDArray[Any]]) -> Heads[NDArray[Any]]:
        """Return heads in the order of the first batch, in the dtype of the maps, or refuse them."""
        specs = self.specs or self.request.specs_of(heads)
        return specs.like(as_stored_heads(check_specs(heads, specs, self.told_by), specs))

    def refuse_left_out(self, rows: NDArray[np.intp]) -> None:
        """Refuse patches of boxes that were said not to come."""
        wrong = np.flatnonzero(self.left_out[rows])
        if len(wrong):
            raise LocationError(
                f"locations that will_not_come() has named: {named(wrong, 'batch_locs')}, the first being "
                f"{self.request.index.locs[rows[wrong[0]]].tolist()}; bands that waited for them may be made "
                "already, so name only what is never pushed"
            )

    def without_repeats(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return where in a batch the first patch of each box is that has none, or refuse the others."""
        if self.request.on_duplicate == "error":
            repeats = np.flatnonzero(self.written[rows])
            locations = self.request.index.locs[rows[repeats]]
            raise DuplicateLocationError(
                f"pushed before: {named(repeats, 'batch_locs')}, the first being {locations[0].tolist()}; a "
                "patch that was blended cannot be taken out again: push each location once, or say "
                'on_duplicate="first" or "average"',
                repeats,
                locations,
            )
        kept = without_repeats(rows, is_last=False)
        return kept[~self.written[rows[kept]]]

    def blend(
        self,
        rows: NDArray[np.intp],
        heads: Heads[NDArray[Any]],
        weights: Sequence[Any] | None = None,
        *,
        is_lent: bool = False,
    ) -> None:
        """Take patches, which have come then: into the bands, or to the thread that blends.

        The caller leaves arrays that are ``is_lent`` to it.
        """
        batch = Batch(
            rows,
            [each.group.seen(heads.values) for each in self.each],
            [each.group.given(weights) for each in self.each],
        )
        waiting, thread = self._waiting, self._waiting.thread
        if not (self.request.may_be_behind and waiting.is_worth_it(batch, is_lent=is_lent)):
            self.settle()
            self._open_bands(rows)
            try:
                self._blend(batch)
            finally:
                self.written[rows] = self._blended[rows]  # whatever interrupts
            return
        thread.wait_for_room(batch.nbytes, waiting.most_nbytes)
        if not thread.is_at_work:
            self.settle()
        self._open_bands(rows)
        if not is_lent:
            batch = waiting.own(batch)
        self._is_taking = True
        waiting.put(self._do, batch)
        self.written[rows] = True
        self._is_taking = False

    def _open_bands(self, rows: NDArray[np.intp]) -> None:
        for each in self.each:
            try:
                each.bands.open(rows)
            except MemoryLimitError:
                if self._waiting.thread.is_done:
                    raise
                self.settle()  # which may complete bands
                each.bands.open(rows)

    def settle(self) -> None:
        """Wait until all that was taken is blended, and deliver the band that the disk refused, if any.

        Raises what kept the thread from it, if that is still so; nothing is lost then.
        """
        self.tell_torn()
        self._leave(0)
        self._waiting.thread.settle()
        for each in self.each:
            each.deliver_waiting()

    def tell_torn(self) -> None:
        """Raise, once, what stopped the thread half-way through a batch."""
        failure = self._waiting.thread.failure
        if failure is not None and self.is_torn:
            self._waiting.thread.failure = None
            raise failure

    def _leave(self, n_cores: int) -> None:
        for each in self.each:
            each.bands.leave(n_cores)

    def _do(self, batch: Batch) -> None:
        """Blend a batch that was taken, and deliver what gets complete."""
        if self._is_half_way:  # this is the second try
            failure, self._waiting.thread.failure = self._waiting.thread.failure, None
            raise failure or ClosedError("a batch was left half-way: close(), and make a new stitcher")
        self._leave(0 if self._waiting.thread.is_awaited else 1)  # which the loop has
        self._waiting.make_ready(batch)
        for each in self.each:
            each.deliver_waiting()
        if not self._blended[batch.rows].all():
            self._blend(batch)
            self._waiting.give_back(batch)
        for each in self.each:
            each.deliver(each.bands.complete())

    def _blend(self, batch: Batch) -> None:
        pushes = [
            each.bands.prepare(batch.rows, heads, given)
            for each, heads, given in zip(self.each, batch.heads, batch.given, strict=True)
        ]
        self._is_torn = len(pushes) > 1  # what one group has taken cannot be taken out again
        for each, push in zip(self.each, pushes, strict=True):
            each.bands.add(push)  # which says in `_blended` that they are
        self._is_torn = False

    def average(self, rows: NDArray[np.intp], heads: Heads[NDArray[Any]]) -> None:
        """Take patches into the means of their boxes."""
        for number, each in enumerate(self.each):
            self._is_torn = number > 0  # what one group has taken cannot be taken out again
            if each.passes is not None:
                each.passes.add(rows, each.group.seen(heads.values))
        self.written[rows] = True
        self._is_torn = False

    def deliver(self) -> None:
        """Deliver what got complete in a push; what the disk refuses waits for the next call."""
        for each in self.each:
            each.tell_if_large()
        for each in self.each if self._waiting.thread.is_done else ():
            each.deliver(each.bands.complete(), is_pushing=True)
        self._waiting.end_push()

    def deliver_rest(self) -> None:
        """Deliver all bands, complete or not, as no patch comes any more."""
        self.settle()
        self.is_ending = True
        for each in self.each:
            each.deliver_averages()
            each.deliver(each.bands.all_open())

    def hand_over(self, told: tuple[NDArray[Any], NDArray[np.bool_], int] | None) -> Kept:
        """Return the maps, which take no more; in a store they are complete then.

        What is ``told`` of locations, which were written and how many lie outside, is of more than came here.
        """
        request, names = self.request, self.specs.names
        groups = [each.group for each in self.each]
        outside = n_outside([group.grid for group in groups])
        locs, written, outside = told or (request.index.locs.copy(), self.written.copy(), outside)
        if request.store is not None:
            placed = [(group.heads.values, group.lays[0]) for group in groups]
            note(Path(request.store), facts_of(names, request.frame, placed, outside), locs, written)
        sheets = [each.hand_over(self.written) for each in self.each]
        return Kept(names, request.frame, sheets, locs, written, outside)

    def flush(self) -> None:
        """Record what is complete; what waits to be blended is dropped."""
        self._waiting.thread.close()
        for each in self.each:
            each.canvas.flush()

    def stop(self) -> None:
        """End the threads, and let go of the bands and of what waits to be blended."""
        self._waiting.close()
        for each in self.each:
            each.canvas.stop()
        for each in self.each:
            each.close()

    def close(self) -> None:
        """Forget all rows."""
        for each in self.each:
            each.canvas.close()

    def shown(self) -> tuple[int, str]:
        """Return how many patches have come, and what a bar says besides."""
        is_in_ram = all(each.canvas.zarr_store is None for each in self.each)
        nbytes = self.open_nbytes
        memory = memory_state(nbytes + is_in_ram * self.nbytes, available_memory(), is_in_ram=is_in_ram)
        return int(np.count_nonzero(self.written)), f"{as_text(nbytes)} in open bands, {memory}"


def _average_all(deliveries: Sequence[Delivery[Any]], request: Request) -> None:
    """Make room for the mean of each box."""
    held = sum(each.canvas.nbytes for each in deliveries if each.canvas.zarr_store is None)
    budget = attrs.evolve(request.budget.share(1 / len(deliveries)), held_nbytes=held)
    for each in deliveries:
        each.passes = Passes.start(request.index.locs, each.group.maps, budget)

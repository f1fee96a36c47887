"""Break the library on purpose, one line at a time, and see that the tests notice.

``python tests/mutations.py`` makes each mutation in a copy of the package, as many at a time as there are
cores, and runs the tests that are to notice it. One that none notices is an error. Words on the command line
choose the mutations that have one of them in their file or lines.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIONS = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--hypothesis-profile=mutations"]
TIMEOUT = 300  # seconds; tests that a mutation made hang have noticed it
LOCATIONS, FULL_BATCH = "accumulator/_core/locations.py", "accumulator/_core/align.py"
BOXES = "accumulator/_core/grid_locations.py"
CANVAS, STORES = "accumulator/_core/canvas.py", "accumulator/_stores"
PUTS, PLACE = "accumulator/_core/all_or_nothing.py", "accumulator/_core/ram_or_disk.py"
BLOCK, HEAD, FILES, ENCODED = (
    f"{STORES}/writing/block.py",
    f"{STORES}/writing/head.py",
    f"{STORES}/format/chunk_files.py",
    f"{STORES}/writing/encoded.py",
)
CHUNKS, COPYING = f"{STORES}/memory/row_numbers.py", f"{STORES}/memory/copying.py"
STAMPS, LOOSE = f"{STORES}/format/stamps.py", f"{STORES}/writing/loose.py"
REDONE = f"{STORES}/reading/redone.py"
LIKE_NUMPY, RECORD = f"{STORES}/format/like_numpy.py", f"{STORES}/writing/record.py"
RESULT, DIMENSIONS = "accumulator/_core/result.py", "accumulator/_inputs/heads.py"
RAM, WRITER = f"{STORES}/memory/ram.py", f"{STORES}/writing/writer.py"
STITCHING = "accumulator/_stitching"
BANDS, BLEND, GRID = f"{STITCHING}/bands.py", f"{STITCHING}/blend.py", f"{STITCHING}/grid.py"
FRAME, COUNTING, PASSES = f"{STITCHING}/frame.py", f"{STITCHING}/counting.py", f"{STITCHING}/passes.py"
LAID = f"{STITCHING}/boxes.py"
BAND, BLENDS, VOTES = f"{STITCHING}/band.py", f"{STITCHING}/blends.py", f"{STITCHING}/votes.py"
DELIVERY, REDUCE = f"{STITCHING}/delivery.py", f"{STITCHING}/reduce.py"
NUMBERS, WEIGHTS = f"{STITCHING}/numbers.py", f"{STITCHING}/weights.py"
PARTS, SOURCE = f"{STITCHING}/parts.py", f"{STITCHING}/source.py"
WHOLE, MAP_RANKS = f"{STITCHING}/whole.py", f"{STITCHING}/ranks.py"
BEHIND, COPIES = f"{STORES}/memory/behind.py", f"{STORES}/memory/copies.py"
DELIVERIES, KEYS = f"{STITCHING}/deliveries.py", f"{STORES}/format/names.py"
BATCH = f"{STITCHING}/batch.py"

_CORE = ["core/test_accumulator.py", "core/test_leaving_ram.py", "core/test_plan.py"]
_STORES = ["stores/test_row_stores.py", "stores/writing", "stores/format"]
TESTS = {  # the likely ones first
    LOCATIONS: ["core/test_locations.py", "core/test_align.py", "core/test_accumulator.py"],
    FULL_BATCH: ["core/test_align.py", "core/test_accumulator.py"],
    BOXES: ["core/test_grid_locations.py"],
    "accumulator/_core": [*_CORE, "inputs/test_options.py", *_STORES],
    f"{STORES}/memory": ["stores/memory", *_STORES, *_CORE],
    STORES: [*_STORES, *_CORE],
    STAMPS: ["stores/reading/test_absent.py", *_STORES],
    LOOSE: ["stores/writing/test_loose.py", *_STORES],
    REDONE: ["stores/kept/test_killed.py"],
    LIKE_NUMPY: ["stores/format/test_like_numpy.py"],
    RECORD: ["stores/format/test_dimensions.py"],
    RESULT: ["core/test_results.py"],
    BEHIND: ["stores/memory/test_behind.py", "stitching/test_behind_the_loop.py", "core/test_handed_over.py"],
    COPIES: ["stores/memory/test_behind.py", "stitching/test_behind_the_loop.py"],
    COPYING: ["stores/memory", "core/test_handed_over.py"],
    RAM: ["core/test_handed_over.py", "stores/memory", *_STORES, *_CORE],
    BLOCK: ["core/test_handed_over.py", *_STORES, *_CORE],
    DELIVERIES: ["stitching/test_behind_the_loop.py", "stitching/test_bands.py"],
    BATCH: ["stitching/test_behind_the_loop.py", "stitching/test_bands.py"],
    KEYS: ["stores/format/test_head_keys.py"],
    DIMENSIONS: ["stores/format/test_dimensions.py"],
    FRAME: [
        "stitching/test_geometry.py",
        "stitching/test_any_geometry.py",
        "stitching/test_values.py",
        "stitching/test_blends.py",
    ],
    LAID: ["stitching/test_geometry.py", "stitching/test_any_geometry.py", "stitching/test_values.py"],
    COUNTING: ["stitching/test_nodata.py", "stitching/test_blends.py"],
    VOTES: ["stitching/test_blends.py"],
    REDUCE: ["stitching/test_blends.py"],
    DELIVERY: ["stitching/test_blends.py"],
    BLENDS: ["stitching/test_values.py", "stitching/test_blends.py"],
    PASSES: ["stitching/test_passes.py"],
    GRID: ["stitching/test_grid.py", "stitching/test_values.py", "stitching/test_maps_by_ranks.py"],
    MAP_RANKS: ["stitching/test_maps_by_ranks.py"],
    PARTS: ["stitching/test_grid.py", "stitching/test_values.py", "stitching/test_bands.py"],
    STITCHING: ["stitching/test_values.py", "stitching/test_bands.py", "stitching/test_stitcher.py"],
}

MUTATIONS = [
    (LOCATIONS, "return slice(start, start + n)", "return slice(start, start + n - 1)"),
    (LOCATIONS, "(self._exact[rows] == locs).all(axis=1)", "(self._exact[rows] == locs).any(axis=1)"),
    (LOCATIONS, "rows = self._order[rows]", "rows = rows + 0"),
    (LOCATIONS, "np.searchsorted(self._keys, wanted)", "np.searchsorted(self._keys, wanted, 'right')"),
    (LOCATIONS, "        left = self._most\n", "        left = self._most - 1\n"),
    (
        LOCATIONS,
        "if int(rows[-1]) != start + n - 1 or not _is_rising(rows):",
        "if int(rows[-1]) != start + n - 1:",
    ),
    (LOCATIONS, "weights += part * size", "weights += part"),
    (LOCATIONS, "if are_rows and self._are_columns is None and not prefers_rows:", "if False:"),
    (LOCATIONS, "return given.T if self._are_columns else given, None", "return given, None"),
    (LOCATIONS, "key * len(values) + ranks", "key + ranks"),
    (LOCATIONS, "np.diff(rows[ranked]) == 0", "np.diff(rows[ranked]) == 1"),
    (BOXES, "-(-rest // step)", "rest // step"),
    (BOXES, "np.minimum(each, n - size)", "np.minimum(each, n)"),
    (BOXES, "size * float(overlap) - _ROUNDING", "size * float(overlap) + _ROUNDING"),
    (BOXES, "np.minimum(begin + sizes[axis], lengths[axis])", "begin + sizes[axis]"),
    (BOXES, "max(largest, furthest) < _INT64_LIMIT", "True"),
    (BOXES, "object if largest > _FLOAT64_LIMIT else kind", "kind"),
    (BOXES, "(counts > 0) & (share >= ratio)", "(counts > 0) & (share > ratio)"),
    (BOXES, "part[:, np.minimum(whole, n - 1)] * rest", "rest * 0"),
    (BOXES, "(n // common, length // common)", "(n, length // common)"),
    (BOXES, "sums[first : first + n_rows] = above", "sums[:n_rows] = above"),
    (FULL_BATCH, "else int(rows.max())", "else int(rows[-1])"),
    (FULL_BATCH, "len(index) if is_last else _last(rows) + 1", "_last(rows) + 1"),
    (FULL_BATCH, "index.locs[consumed:].copy(), done", "index.locs[consumed + 1 :].copy(), done"),
    (CANVAS, "return as_numbers(rows)[~seen], tuple(", "return as_numbers(rows)[seen], tuple("),
    (PUTS, "max(before, n_consumed)", "n_consumed"),
    (PUTS, "            self.written[rows] = True", "            self.written[: len(values[0])] = True"),
    (PUTS, "rows = rows[~self.written[rows]]", "rows = rows[:0]"),
    (PUTS, "or not touched else [(again, held)]", "or touched else [(again, held)]"),
    (
        PUTS,
        "as_numbers(rows)[~seen], as_numbers(rows)[seen]",
        "as_numbers(rows)[seen], as_numbers(rows)[~seen]",
    ),
    (PUTS, "                touched = stop", "                touched = start"),
    (
        PUTS,
        "np.full((1, *s.patch_shape), s.storage.fill_value, s.dtype)",
        "np.zeros((1, *s.patch_shape), s.dtype)",
    ),
    (PLACE, "store.take_over(ram, batches.written)", "store.take_over(ram, batches.written[::-1])"),
    (HEAD, "None if known is None or known.all() else known", "None"),
    (HEAD, "None if known is None else known | block.filled", "None if known is None else block.filled"),
    (HEAD, "while len(self._open) > self._most_open:", "while len(self._open) > self._most_open + 1:"),
    (HEAD, "values[where] = found[numbers - first]", "values[where] = found[: len(numbers)]"),
    (HEAD, "np.where(mask, block.values[local], values[where])", "block.values[local]"),
    (HEAD, "if block.n_filled == 0 and not block.is_lent:", "if not block.is_lent:"),
    (HEAD, "block.start + block.values.nbytes)", "block.start + 2 * block.values.nbytes)"),
    (HEAD, "block.pages.give_back(block.start, ", "pass\n                (block.start, "),
    (BLOCK, "values.dtype != head.dtype or start % PAGE_NBYTES", "start % PAGE_NBYTES"),
    (HEAD, "(self.lent if handed.is_lent else self._open)[chunk] = handed", "pass"),
    (FILES, "offset, nbytes = start * self._row_nbytes, ", "offset, nbytes = 0, "),
    (FILES, "values[~filled] = self._fill", "values[~filled] = 0"),
    (FILES, "system.set_size(file, self.file_nbytes)  # zarr wants whole chunks", "pass"),
    (FILES, "self._read(file, start, stop)[between] if is_there else self._fill", "self._fill"),
    (FILES, "with system.made_whole(path, self._maker) as partial:", "for partial in [path]:"),
    (FILES, "if len(memory) != nbytes:", "if False:"),
    (FILES, "if nbytes != self.file_nbytes:", "if False:"),
    (ENCODED, "values[~filled] = self.read(chunk, 0, len(values))[~filled]", "values[~filled] = self._fill"),
    (ENCODED, "self.waiting[chunk] = waiting | filled", "self.waiting[chunk] = filled.copy()"),
    (ENCODED, "if not (filled | waiting | encoded).all():", "if not (filled | encoded).any():"),
    (
        ENCODED,
        "np.full((stop - start, *self._array.shape[1:]), self._fill)",
        "np.zeros((stop - start, *self._array.shape[1:]), self._fill.dtype)",
    ),
    (ENCODED, "is_there=chunk in self.waiting", "is_there=False"),
    (CHUNKS, "min(rows.stop, first + chunk_rows)", "min(rows.stop, first + chunk_rows - 1)"),
    (CHUNKS, "rows[where] - chunk * chunk_rows", "rows[where] - chunk * chunk_rows - 1"),
    (CHUNKS, "np.diff(rows) > gap + 1", "np.diff(rows) > gap + 2"),
    (CHUNKS, "slice(rows.start + start, min(", "slice(rows.start, min("),
    (COPYING, "zip(at.tolist(), numbers", "zip(sorted(at.tolist()), numbers"),
    (COPYING, "source, cut(of, start, stop))", "source, cut(of, 0, stop - start))"),
    (RAM, "Piece(array, rows, head, n)", "Piece(array, rows, head[::-1], n)"),
    (RAM, "array[...] = spec.storage.fill_value", "array[1:] = spec.storage.fill_value"),
    (RAM, "return max(counts) > counts[0]", "return False"),
    (WRITER, "or under_way + nbytes <= self.limit_nbytes", "or True"),
    (WRITER, "self._failed[id(job)] = (job, error)", "pass"),
    (WRITER, "self._is_told = True", "pass"),
    (WRITER, "np.concatenate([self.in_memory(), *(job.rows for job in jobs)])", "jobs[0].rows"),
    (WRITER, "self._changed.wait_for(lambda: job not in self._running)", "pass"),
    (LAID, "np.clip(stop, 0, shape)", "np.clip(stop, 0, None)"),
    (LAID, "skip = low - start", "skip = low * 0"),
    (LAID, "pixels(frame.start, scale) - origin", "pixels(frame.start, scale)"),
    (LAID, "ends & ~begins & is_known", "ends & ~begins"),
    (LAID, "exact - below >= 0.5", "exact - below > 0.5"),
    (LAID, "<= self.slack) & (self.first > 0)", "<= self.slack)"),
    (FRAME, "return more // 2", "return more"),
    (FRAME, "slice(cut, length - cut)", "slice(cut, length)"),
    (LAID, "misfit.refuse_larger(self.length >= patch + 1)", "pass"),
    (FRAME, "np.array(whole) - 2 * cut", "np.array(whole) - cut"),
    (FRAME, "given[:, self.geometry.columns] = half", "given[:] = half"),
    (FRAME, "if area > _MOST_EMPTY * covered:", "if False:"),
    (COUNTING, "counts &= known <= row", "pass"),
    (COUNTING, "known[counts] = row + 1", "known[counts] = 1"),
    (COUNTING, "known |= counts", "pass"),
    (COUNTING, "np.add(known, True if counts is None else counts, out=known)", "known[...] = 1"),
    (COUNTING, "weights if counts is None else np.where(counts, weights, weights.dtype.type(0))", "weights"),
    (COUNTING, "np.copyto(written, empty, where=is_empty)", "pass"),
    (COUNTING, "(known == 0) | (key < known)", "(known == 0) | (key <= known)"),
    (COUNTING, "(1 if layer.rows is None else row + 1)", "1"),
    (COUNTING, "np.copyto(known, key, where=is_nearer)", "pass"),
    (COUNTING, "chosen &= _repeated(given > 0, layer.n_channels)", "pass"),
    (WHOLE, "band.blank(specs)", "pass"),
    (FRAME, "before = (patch - (stop - boxes.first)) // 2", "before = 0"),
    (COUNTING, "np.where(own == 0, patch.dtype.type(0), patch)", "patch"),
    (COUNTING, "wider(np.dtype(np.result_type(spec.sum_dtype, np.float32))) if has_weights else ", ""),
    (VOTES, "((counts == 0) | (known == classes))", "((counts == 0) | (known <= classes))"),
    (VOTES, "left &= ~here", "break"),
    (VOTES, "(classes < winner)", "(classes > winner)"),
    (VOTES, "votes[...] = 0", "pass"),
    (VOTES, "votes >= most - self.slack) &", "votes >= most) &"),
    (VOTES, "slots[0][1] >= most - self.slack", "slots[0][1] >= most"),
    (BLENDS, "_SIGMA: Final = 0.125", "_SIGMA: Final = 0.126"),
    (BLENDS, "_VOTE_BITS: Final = 42", "_VOTE_BITS: Final = 2"),
    (BLENDS, "(2 * np.arange(length, dtype=np.int64) - (length - 1)) ** 2", "np.arange(length)"),
    (REDUCE, "made[gaps] = self.fill_value", "pass"),
    (REDUCE, "rows.shape[-1] - 1", "255 + rows.shape[-1]"),
    (DELIVERY, "self._made is None or self._made[0] != number", "True"),
    (DELIVERY, "if any(spec.reduced is not None for spec in specs):", "if False:"),
    (FRAME, "stop = np.maximum(boxes.first + 1, boxes.last)", "stop = boxes.last"),
    (BAND, "any(np.asarray(spec.fill_value, spec.dtype).tobytes())", "False"),
    (BAND, "if self.is_used:", "if not self.is_used:"),
    (COUNTING, "np.copyto(written, spec.fill_value, where=covered == 0)", "pass"),
    (COUNTING, "np.isnan(values) if nodata != nodata else values == nodata", "values == nodata"),
    (PASSES, "np.rint(mean * k) / k", "mean"),
    (PASSES, "k = k if known is None else np.maximum(known, 1)", "pass"),
    (PASSES, "mean[known == 0] = spec.nodata", "pass"),
    (PASSES, "& (known > 0)] = _beside(spec.nodata)", "& (known > 0)] = spec.nodata"),
    (PASSES, "known[at] += is_value", "known[at] += 1"),
    (PASSES, "n[at] += 1", "n[at] = 1"),
    (PASSES, "left = np.delete(left, kept)", "left = left[:0]"),
    (PASSES, "rows if self._came is None else self._came[rows]", "rows"),
    (PASSES, "np.where(np.isfinite(mean) & np.isfinite(values), joined, mean + values)", "joined"),
    (PASSES, "mean + (values / k - mean / k)", "mean + (values - mean) / k"),
    (STAMPS, "is_right = is_whole or was == stamp_at(path)", "is_right = True"),
    (STAMPS, "self.is_strict and stamp != self._known.get(self._key(path))", "stamp is None"),
    (STAMPS, "np.flatnonzero(known) + first", "np.flatnonzero(known)"),
    (STAMPS, "min(first + unit_rows, n_rows)", "first + unit_rows"),
    (STAMPS, "stat.S_ISREG(os.fstat(file).st_mode)", "True"),
    (STAMPS, "if cause.errno == errno.ELOOP:", "if False:"),
    (STAMPS, "status.st_size, status.st_mtime_ns, status.st_ctime_ns", "status.st_size, 0, 0"),
    (REDONE, "await made.setitem(rows, values)", "pass"),
    (GRID, "for corner in np.ndindex", "for corner in [(0,) * len(size)] or np.ndindex"),
    (WEIGHTS, "known = self._lines.get(key)", "known = next(iter(self._lines.values()), None)"),
    (WEIGHTS, "last is not None and last[0] == key:", "last is not None:"),
    (WEIGHTS, "key, last = (factor, n_channels, dtype)", "key, last = (factor, n_channels)"),
    (WEIGHTS, "elif (factors == factors[0]).all():", "elif (factors == factors[0]).any():"),
    (WEIGHTS, "line[max(0, first) : last] += own", "line[max(0, first) : last] = own"),
    (WEIGHTS, "sums[in_band, *rest] += ", "sums[in_band, *rest] = "),
    (WEIGHTS, "(grid.stop[rows, 0] > start)", "(grid.stop[rows, 0] > start + 1)"),
    (NUMBERS, "2 * n_overlaps * 2**bits <= 2**24", "True"),
    (NUMBERS, "np.rint(values, out=values)", "pass"),
    (NUMBERS, "np.greater_equal(values, 0.5, out=target)", "np.greater(values, 0.5, out=target)"),
    (NUMBERS, "target[is_over], target[is_under] = limits.max, limits.min", "pass"),
    (NUMBERS, "largest >= np.finfo(values.dtype).max / (2 * FEW)", "largest == np.inf"),
    (BLEND, "np.where(weights == 0, 0, patch)", "patch"),
    (BLEND, "np.add(target, product, out=target)", "np.copyto(target, product)"),
    (BLEND, "return not math.isfinite(np.dot(flat, flat)) and is_large(flat)", "return False"),
    (BLEND, "math.isfinite(np.dot(flat, flat)) and", "math.isfinite(flat[:1].sum()) and"),
    (BLEND, "slice(first, first + stop - part)", "slice(first, first + stop - part - 1)"),
    (BLEND, "range(share.done, len(share.patches))", "range(len(share.patches))"),
    (BLEND, "np.copyto(written, spec.fill_value, where=gaps)", "pass"),
    (BLEND, "where=mask(share, part, layer.n_channels)", "where=True"),
    (BANDS, "array[: len(sums[head])] = sums[head]", "pass"),
    (BAND, "if empty or self.is_used or is_filled:", "if empty or self.is_used:"),
    (BANDS, "or (left_out is not None and left_out[order[self._next]])", "or False"),
    (BANDS, "self._written[push.rows] = True", "self._written[push.rows[:-1]] = True"),
    (BANDS, "others[others > row]", "others[others < row]"),
    (BANDS, "if self._last < row:", "if self._last > row:"),
    (BANDS, "[start - self.grid.patch[0], stop]", "[start, stop]"),
    (BANDS, "return rows[self._written[rows]]", "return rows"),
    (BANDS, "self._written[order[self._next]]", "True"),
    (BANDS, "[1] <= edge]", "[0] <= edge]"),
    (PARTS, "pairwise([0, *grid.cuts(rows, n_threads).tolist()", "pairwise([0"),
    (PARTS, "at[:, 1, 0] = np.minimum(stop[which], edges[strip + 1])", "at[:, 1, 0] = stop[which]"),
    (PARTS, "at[:, 0, 0] = np.maximum(start[which], edges[strip])", "at[:, 0, 0] = start[which]"),
    (PARTS, "(grid.skip[rows] - grid.start[rows])[which]", "(-grid.start[rows])[which]"),
    (PARTS, "bands = edges[strip] // height", "bands = strip"),
    (PARTS, "(start < stop) & grid.is_inside[rows]", "start < stop"),
    (WHOLE, 'with np.errstate(over="raise"):', 'with np.errstate(over="ignore"):'),
    (WHOLE, "attrs.evolve(share, done=0)", "share"),
    (
        WHOLE,
        "share.patches = patches[rows[share.patches]].tolist()",
        "share.patches = rows[share.patches].tolist()",
    ),
    (WHOLE, "rows = np.sort(self._rows_between(start, stop))", "rows = self._rows_between(start, stop)"),
    (WHOLE, "np.add.at(edges, last + 1, -1)", "np.add.at(edges, last, -1)"),
    (GRID, "skip[:, 0] += start[:, 0] - self.start[:, 0]", "pass"),
    (GRID, "start[:, 0] -= first", "pass"),
    (MAP_RANKS, "inner = grid.cuts(inside, who.world_size)", "pass"),
    (MAP_RANKS, "~together.recorded()[first:last]", "np.ones(last - first, bool)"),
    (MAP_RANKS, "self._fill(first, last)", "pass"),
    (MAP_RANKS, '"channels_first": [lay.moves_channels for lay in group.lays],', ""),
    (SOURCE, 'rows = rows[np.argsort(start, kind="stable")]', "pass"),
    (SOURCE, "return values[rows - first]", "return values[: len(rows)]"),
    (LIKE_NUMPY, "return True  # by its length", "return len(self) > 0  # by its length"),
    (LIKE_NUMPY, "return found[...] if Ellipsis in parts else found[()]", "return found[...]"),
    (LIKE_NUMPY, "return found[...] if Ellipsis in parts else found[()]", "return found[()]"),
    (LIKE_NUMPY, "    if n_left:  # an ell", "    if True:  # an ell"),
    (LIKE_NUMPY, "rows[-1] - rows[0] == len(rows) - 1", "rows[-1] - rows[0] <= len(rows)"),
    (LIKE_NUMPY, "values[start:stop] = block[some - first]", "values[start:stop] = block[: len(some)]"),
    (LIKE_NUMPY, "np.diff(rows // unit)", "np.diff(rows)"),
    (LIKE_NUMPY, "(np.ndarray, bool, np.bool_))]", "np.ndarray)]"),
    (LIKE_NUMPY, "if index.shape != lengths:", "if index.size != np.prod(lengths):"),
    (LIKE_NUMPY, "if len(arrays) == 1 and arrays[0] is within[0]:", "if arrays and arrays[0] is within[0]:"),
    (LIKE_NUMPY, "within.append(numbers - first)", "within.append(numbers)"),
    (LIKE_NUMPY, "within.append(places.reshape(numbers.shape))", "within.append(places)"),
    (LIKE_NUMPY, "if picked else slice(0, 0)", ""),
    (RECORD, 'own = "" if rows == LOCATION else f"{rows}_"', 'own = ""'),
    (RECORD, "rows = (array.metadata.dimension_names or [rows])[0]", "pass"),
    (DIMENSIONS, "if len(found) > 1 or name in shapes.by_name()", "if name in shapes.by_name()"),
    (DIMENSIONS, "if len(found) > 1 or name in shapes.by_name()", "if len(found) > 1"),
    (DIMENSIONS, " - {LOCATION}", ""),
    (BEHIND, "if self.is_at_work or self.failure is not None:", "if self.is_at_work:"),
    (BEHIND, "self.nbytes + nbytes <= most", "self.nbytes <= most"),
    (BEHIND, "while self._calls and not self.is_at_work:", "while False:"),
    (BEHIND, "while len(self._calls) > self.is_at_work:", "while len(self._calls) > 1:"),
    (BEHIND, "if self._process != os.getpid():", "if False:"),
    (BEHIND, "if self._calls and failure is None:", "if self._calls:"),
    (BEHIND, "with self._warnings.keep():", "if True:"),
    (BEHIND, "self._calls[0][2] > n", "True"),
    (COPIES, "if nbytes <= pages.nbytes <= max", "if pages.nbytes <= max"),
    (COPIES, "laid.transpose(np.argsort(order))", "laid.transpose(order)"),
    (COPYING, "self.settle()\n        self._copy(pieces)", "self._copy(pieces)"),
    (RAM, "def get(self, rows: Rows) -> list[NDArray[Any]]:\n        self.settle()", "def get(self, rows):"),
    (RAM, "def flush(self) -> None:\n        self.settle()", "def flush(self) -> None:\n        pass"),
    (BLOCK, "head.settle(self.n_lots)", "pass"),
    (DELIVERIES, "if not is_lent:\n            batch", "if False:\n            batch"),
    (DELIVERIES, "if not thread.is_at_work:\n            self.settle()", "pass"),
    (DELIVERIES, "waiting.put(self._do, batch)\n", "pass\n"),
    (DELIVERIES, "if not self._blended[batch.rows].all():", "if True:"),
    (DELIVERIES, "if self._is_half_way:  # this", "if False:  # this"),
    (DELIVERIES, "(not self._waiting.thread.is_at_work and self._is_half_way)", "self._is_half_way"),
    (BATCH, "away * tuning.now.copied_nbytes_s >= nbytes", "True"),
    (BATCH, "nbytes < tuning.now.behind_nbytes", "False"),
    (BANDS, "if not band.is_blank:", "if False:"),
    (KEYS, "alike[name.lower()] == 1", "True"),
    (KEYS, "name.lower() not in _DEVICES", "True"),
    (KEYS, "(?!__)", ""),
    (KEYS, r"(?!\d+$)", ""),
    (RESULT, "return self is other", "return super().__eq__(other)"),
    (RESULT, "except (KeyError, TypeError):", "except KeyError:"),
    (RESULT, "return known[plain_key(head)]", "return known[head if head in known else next(iter(known))]"),
]


def tests_of(module: str) -> list[str]:
    """Return the tests that notice what is wrong with a module: those of the nearest folder or file."""
    nearest = max((part for part in TESTS if module.startswith(part)), key=len)
    return [f"tests/{path}" for path in TESTS[nearest]]


def passes(tests: list[str], module: str = "", old: str = "", new: str = "") -> bool:
    """Whether tests pass on a copy of the package, one line of which is changed."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("accumulator", "tests"):
            shutil.copytree(ROOT / part, copy / part)
        shutil.copy(ROOT / "pyproject.toml", copy)
        if module:
            text = (copy / module).read_text()
            (copy / module).write_text(text.replace(old, new))
        try:
            ended = subprocess.run(
                [sys.executable, "-m", "pytest", *OPTIONS, *tests],
                cwd=copy,
                env=os.environ | {"PYTHONPATH": folder},
                capture_output=True,
                check=False,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return False
        if ended.returncode not in {0, 1}:
            raise SystemExit(ended.stdout.decode() + ended.stderr.decode())
        return ended.returncode == 0


def is_missed(mutation: tuple[str, str, str]) -> bool:
    """Make a mutation, and say whether a test noticed."""
    start = time.monotonic()
    module, old, new = mutation
    is_missed = passes(tests_of(module), *mutation)
    verdict, seconds = "MISSED" if is_missed else "caught", time.monotonic() - start
    print(f"{verdict} in {seconds:3.0f} s: {module}: {old.strip()!r} -> {new.strip()!r}", flush=True)
    return is_missed


def main(words: list[str]) -> int:
    """Make mutations and report; return how many were missed."""
    for module, old, _ in MUTATIONS:
        if (n := (ROOT / module).read_text().count(old)) != 1:
            raise SystemExit(f"{module} has {n} times, not once: {old}")
    chosen = [each for each in MUTATIONS if not words or any(word in " ".join(each) for word in words)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        whole = sorted({test for module, *_ in chosen for test in tests_of(module)})
        if not all(pool.map(passes, ([test] for test in whole))):
            raise SystemExit("the tests fail without any mutation")
        missed = sum(pool.map(is_missed, chosen))
    print(f"{len(chosen) - missed} of {len(chosen)} mutations caught")
    return missed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

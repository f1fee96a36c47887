"""What the library should do, said in the slowest and plainest way, sharing no code with it."""

from __future__ import annotations

import numpy as np


def grid(n, *, step=4, columns=5):
    """Return n distinct boxes in raster order, ``[start_x, start_y, end_x, end_y]``."""
    starts = [(step * (i % columns), step * (i // columns)) for i in range(n)]
    return np.array([[x, y, x + step, y + step] for x, y in starts], dtype=np.int64).reshape(n, 4)


def distinct(n, patch_shape=(2, 2, 1), dtype=np.float32, first=1):
    """Return n patches whose every value is different from all others, and never zero."""
    size = n * int(np.prod(patch_shape))
    return (np.arange(size) + first).astype(dtype).reshape(n, *patch_shape)


def align(batch_output, batch_locs, full_output_locs, output_locs, *, is_last):
    """Do what `prepare_multitask_full_batch` documents, row by row."""
    full = [tuple(row) for row in np.asarray(full_output_locs).tolist()]
    matches = [full.index(tuple(row)) for row in np.asarray(batch_locs).tolist()]
    n_consumed = len(full) if is_last else max(matches, default=-1) + 1
    outputs = []
    for head in batch_output:
        output = np.zeros((n_consumed, *head.shape[1:]), head.dtype)
        for match, prediction in zip(matches, head, strict=True):
            output[match] = prediction
        outputs.append(output)
    consumed = np.asarray(full_output_locs)[:n_consumed]
    done = consumed if output_locs is None else np.concatenate([output_locs, consumed])
    return outputs, np.asarray(full_output_locs)[n_consumed:], done


class Oracle:
    """A dict from location to predictions: what an accumulator should hold."""

    def __init__(self, full_output_locs, on_duplicate="error"):
        self.locs = [tuple(row) for row in np.asarray(full_output_locs).tolist()]
        self.on_duplicate = on_duplicate
        self.rows = {}
        self.n_consumed = 0

    def accepts(self, batch_locs):
        """Whether a push of these locations is to be taken."""
        keys = [tuple(row) for row in np.asarray(batch_locs).tolist()]
        known = all(key in self.locs for key in keys)
        again = any(key in self.rows for key in keys)
        return known and not ((again or len(set(keys)) < len(keys)) and self.on_duplicate == "error")

    def push(self, heads, batch_locs):
        """Take a batch that is acceptable."""
        for i, row in enumerate(np.asarray(batch_locs).tolist()):
            key = tuple(row)
            if key not in self.rows or self.on_duplicate == "last":
                self.rows[key] = [np.array(head[i]) for head in heads]
            self.n_consumed = max(self.n_consumed, self.locs.index(key) + 1)

    def written(self):
        """Return which canonical rows are real."""
        return np.array([key in self.rows for key in self.locs], dtype=bool)

    def outputs(self, patch_shapes, dtypes):
        """Return one array a head, zeros where nothing came."""
        return [
            np.stack(
                [self.rows[key][h] if key in self.rows else np.zeros(shape, dtype) for key in self.locs]
            ).astype(dtype)
            for h, (shape, dtype) in enumerate(zip(patch_shapes, dtypes, strict=True))
        ]

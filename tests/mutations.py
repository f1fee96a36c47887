"""Break alignment and placement on purpose, one line at a time, and see that the tests notice.

Run ``python tests/mutations.py``: each mutation is made in a copy of the package, the quick tests run
against it, and a mutation that no test catches is an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TESTS = [
    "tests/test_locations.py",
    "tests/test_full_batch.py",
    "tests/test_stores.py",
    "tests/test_accumulator.py",
]
LOCATIONS, FULL_BATCH = "accumulator/_locations.py", "accumulator/_full_batch.py"
CANVAS, DISK, RAM = "accumulator/_canvas.py", "accumulator/_stores/_disk.py", "accumulator/_stores/_ram.py"

MUTATIONS = [
    (LOCATIONS, "return slice(start, start + n)", "return slice(start, start + n - 1)"),
    (LOCATIONS, "(self._exact[rows] == locs).all(axis=1)", "(self._exact[rows] == locs).any(axis=1)"),
    (LOCATIONS, "rows = self._order[rows]", "rows = rows + 0"),
    (
        LOCATIONS,
        "np.searchsorted(self._keys, self._pack(locs))",
        "np.searchsorted(self._keys, self._pack(locs), 'right')",
    ),
    (
        LOCATIONS,
        "if int(rows[-1]) != start + n - 1 or not _is_rising(rows):",
        "if int(rows[-1]) != start + n - 1:",
    ),
    (LOCATIONS, "weights += part * size", "weights += part"),
    (LOCATIONS, "key * len(values) + ranks", "key + ranks"),
    (LOCATIONS, "np.diff(rows[ranked]) == 0", "np.diff(rows[ranked]) == 1"),
    (FULL_BATCH, "else int(rows.max())", "else int(rows[-1])"),
    (FULL_BATCH, "len(index) if is_last else _last(rows) + 1", "_last(rows) + 1"),
    (FULL_BATCH, "index.locs[consumed:].copy(), done", "index.locs[consumed + 1 :].copy(), done"),
    (CANVAS, "max(self.n_consumed, n_consumed)", "n_consumed"),
    (CANVAS, "_as_numbers(rows)[~seen]\n            arrays", "_as_numbers(rows)[seen]\n            arrays"),
    (CANVAS, "            self.written[rows] = True", "            self.written[: len(arrays[0])] = True"),
    (CANVAS, "partial(store.erase, new)", "partial(store.erase, slice(0, 0))"),
    (CANVAS, "partial(store.put, again, old)", "partial(store.put, again, old[::-1])"),
    (CANVAS, "                self._undo.remove(step)", "                self._undo.clear()"),
    (RAM, "self.array[rows] = values", "self.array[rows] = values[::-1]"),
    (DISK, "min(rows.stop, first + chunk_rows)", "min(rows.stop, first + chunk_rows - 1)"),
    (DISK, "rows[where] - chunk * chunk_rows", "rows[where] - chunk * chunk_rows - 1"),
    (DISK, "file.seek(offset)", "file.seek(0)"),
    (
        DISK,
        "if held.n_filled == len(held.filled):\n            self._close",
        "if held.n_filled >= len(held.filled) - 1:\n            self._close",
    ),
    (DISK, "held.buffer[~held.filled] = 0", "held.buffer[~held.filled] = 1"),
    (DISK, "piece = values[order[a:b]]", "piece = values[a:b]"),
    (DISK, "piece[rows[a:b] - first] = values[order[a:b]]", "piece[rows[a:b] - first] = values[a:b]"),
    (DISK, "np.diff(rows) > gap + 1", "np.diff(rows) > gap + 2"),
    (DISK, "(stale + start) // BLOCK_NBYTES", "(stale + start) // BLOCK_NBYTES + 1"),
    (DISK, "        self.filled[local] = False", "        self.filled[:] = False"),
]


def is_caught(file: str, old: str, new: str) -> bool:
    """Whether the tests fail on a copy of the package with one change."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for part in ("accumulator", "tests"):
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        text = (copy / file).read_text()
        if text.count(old) != 1:
            raise SystemExit(f"{file} has {text.count(old)} times, not once: {old}")
        (copy / file).write_text(text.replace(old, new))
        ended = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": folder},
            capture_output=True,
            check=False,
        )
        if ended.returncode not in {0, 1}:
            raise SystemExit(ended.stdout.decode())
        return ended.returncode == 1


def main() -> int:
    """Make every mutation and report; return how many were missed."""
    if is_caught(LOCATIONS, "from __future__ import annotations", "from __future__ import annotations\n"):
        raise SystemExit("the tests fail without any mutation")
    missed = 0
    for file, old, new in MUTATIONS:
        caught = is_caught(file, old, new)
        missed += not caught
        print("caught" if caught else "MISSED", f"{file}: {old.strip()!r} -> {new.strip()!r}", flush=True)
    print(f"{len(MUTATIONS) - missed} of {len(MUTATIONS)} mutations caught")
    return missed


if __name__ == "__main__":
    sys.exit(main())

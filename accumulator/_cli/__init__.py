"""The command line: ``accumulator demo | info | verify | missing | publish | stitch | report``."""

from accumulator._cli.commands import main

__all__ = ["main"]

"""The report: one page that shows what a store holds, complete or while it is being written.

It needs no network, and nothing that it shows is believed: names and locations may come from a stranger.
"""

from __future__ import annotations

from accumulator._report.content import Report, gather, thumbnail
from accumulator._report.page import render, write_report

__all__ = ["Report", "gather", "render", "thumbnail", "write_report"]

"""The demo behind ``accumulator demo``: a trained network over a real slide, tile by tile.

It needs the extra ``demo``. It accumulates and stitches by the public names alone; the report, files that are
whole and what tells of a missing extra come from the rooms below.
"""

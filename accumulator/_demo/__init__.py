"""The demo behind ``accumulator demo``: a trained network over a real slide, tile by tile.

It needs the extra ``demo``. It uses the library only by its public names, `need` and `write_report`, and the
library never uses it.
"""

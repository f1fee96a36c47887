"""``python -m accumulator``: the same as the ``accumulator`` command."""

import sys

from accumulator._cli.commands import main

if __name__ == "__main__":
    sys.exit(main())

"""The worker."""

import sys

from helpers.hostile.cases import work

work(*sys.argv[1:])

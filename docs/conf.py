"""How the documentation is built: ``sphinx-build -W docs docs/_build/html``."""

import accumulator

project = "accumulator"
author = "the accumulator maintainers"
project_copyright = f"2026, {author}"
release = accumulator.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "changes"]
html_theme = "furo"
html_title = "accumulator"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = False
napoleon_use_ivar = True
myst_heading_anchors = 3

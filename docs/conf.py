"""The documentation as a site: ``make docs`` builds it into build/docs."""

from __future__ import annotations

import qsim

project = "qsim"
author = "the qsim authors"
version = release = qsim.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx_click",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["scripts"]

html_theme = "furo"
html_title = "qsim"
html_show_copyright = False

# Commands and what they print stand in indented blocks: neither Python nor any other language.
highlight_language = "none"

# "#a-heading" leads to a heading, as on code hosts.
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say what a parameter is
numpydoc_show_class_members = False
autosummary_generate = False  # numpydoc brings it in; the API is one page

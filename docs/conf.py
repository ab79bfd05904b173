"""Settings of the documentation: Sphinx with the furo theme, pages in Markdown, the reference from the docstrings."""

import importlib.metadata

project = "uringws"
author = "the uringws developers"
copyright = "the uringws developers"  # noqa: A001 - the name that Sphinx wants
release = importlib.metadata.version("uringws")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
default_role = "code"  # docstrings write names in single backticks

html_theme = "furo"
html_title = f"uringws {release}"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}

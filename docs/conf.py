"""Sphinx's configuration: MyST pages, of which some are executed, and a reference of docstrings."""

import os
import sys
from pathlib import Path

import reptile_jax  # noqa: F401  (a build without the package fails here, in one line)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))
os.environ["JAX_PLATFORMS"] = "cpu"  # the same pages everywhere; kernels inherit it

project = "reptile_jax"
author = "The reptile_jax developers"
copyright = author
version = release = "0.2.0"
language = "en"

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "docstrings",
    "public_names",
    "source_lines",
]
exclude_patterns = ["_build"]
nitpicky = False
smartquotes = False

# Docstrings: Google style. Single backticks are code, and links where they name something here.
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
add_module_names = False
public_modules = [
    "reptile_jax",
    "reptile_jax.tasks",
    "reptile_jax.nn",
    "reptile_jax.datasets",
    "reptile_jax.checkpoint",
    "reptile_jax.deploy",
]

myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3
nb_execution_mode = "force"
if not Path("/usr/share/dict/manx").exists():  # word lists, which the page of languages reads
    nb_execution_excludepatterns = ["uses/languages.md"]
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_merge_streams = True

html_theme = "sphinx_book_theme"
html_title = "reptile_jax"
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
html_show_copyright = False

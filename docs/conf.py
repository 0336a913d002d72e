"""How Sphinx builds the site: `make site`.

The source directory is the root of the repository, so that a link between two pages is one link on
the site, on disk and in a repository browser; `include_patterns` says which files are pages.
"""

import inspect
import pathlib
import re
import types

from docutils import nodes, utils
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.domains.python import PyXRefRole
from sphinx.util import logging
from sphinx.util.inspect import DefaultValue

from docs import rooms

project = "jaxlab"
copyright = "The jaxlab authors"
root_doc = "docs/index"
include_patterns = [
  "docs/**",
  "colabs/*.ipynb",
  "benchmarks/README.md",
  "BUILD.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
]
exclude_patterns = [".*", "build", "runs"]
extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "sphinx.ext.viewcode",
]

# Pages and notebooks. `make colabs` executes the notebooks; here their stored outputs are shown.
nb_execution_mode = "off"
highlight_language = "none"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4

# The reference. Shapes and types stand in the docstrings; chex.Array expands to a union of eight.
autodoc_default_options = {
  "members": True,
  "special-members": "__call__",
  "exclude-members": "setup, set_predict_request, set_score_request",  # Of flax, of scikit-learn.
}
autodoc_typehints = "none"
autodoc_preserve_defaults = True
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
default_role = "name"

# A name in {py:func}`...` must exist; of single backticks in docstrings only some are our names.
nitpicky = True
nitpick_ignore_regex = [(r"py:(obj|class)", ".*")]

html_theme = "furo"
html_title = "jaxlab"
html_static_path = html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False


def setup(app):
  """Adds what the extensions lack."""
  app.add_role("name", name_or_code)
  app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
  app.connect("autodoc-process-signature", name_defaults)
  app.connect("autodoc-skip-member", skip_fields)
  app.connect("builder-inited", write_reference)
  app.connect("build-finished", redirect_to_root)


def name_or_code(role, rawtext, text, lineno, inliner, options=None, content=()):
  """Single backticks in a docstring: a link if it is a name of the reference, else code."""
  if re.fullmatch(r"[\w.]*\w", text):
    return PyXRefRole()("py:obj", rawtext, text, lineno, inliner, options or {}, content)
  return [nodes.literal(rawtext, utils.unescape(text, restore_backslashes=True))], []


def name_defaults(app, what, name, obj, options, signature, returns):
  """Shows the defaults of a flax module by name, and leaves out what every one of them takes."""
  if what != "class" or not hasattr(obj, "apply"):
    return None
  shown = []
  for parameter in inspect.signature(obj).parameters.values():
    default = parameter.default
    if default is not parameter.empty and callable(default):
      parameter = parameter.replace(default=DefaultValue(default.__name__))
    if parameter.name not in ("parent", "name"):
      shown.append(parameter.replace(annotation=parameter.empty))
  return str(inspect.Signature(shown)), returns


def skip_fields(app, what, name, obj, skip, options):
  """Of the members of a class only methods and properties: fields stand in its signature."""
  return skip or not isinstance(obj, types.FunctionType | types.MethodType | property)


def visit_math(self, node):
  """Writes a formula as MathML: no script to load, and a formula in error is a warning."""
  block = isinstance(node, nodes.math_block)
  try:
    formula = tex2mathml(node.astext(), as_block=block)
  except MathError as error:
    logging.getLogger("docs").warning("%s", error, location=node)
    raise nodes.SkipNode from error
  # Browsers give "log q" no space of its own; TeX gives it one, unless a parenthesis opens there.
  formula = re.sub(
    r"<mo>&ApplyFunction;</mo>(?!\s*<mo[^>]*>[(\[{|])", '<mspace width="0.17em"/>', formula
  )
  self.body.append(f'<div class="math">{formula}</div>\n' if block else formula)
  raise nodes.SkipNode


def write_reference(app):
  """Writes the sources of the reference, a page a room."""
  rooms.write(pathlib.Path(app.srcdir) / "docs" / "reference")


def redirect_to_root(app, exception):
  """Leads from the folder of the site to its first page."""
  page = f'<meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
  (pathlib.Path(app.outdir) / "index.html").write_text(page)

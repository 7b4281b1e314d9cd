"""What Sphinx is told. Formulas become MathML, which every browser draws without a script.

Invariant: nothing on a page comes from the network, and no lesson is executed: pages show the
outputs that were committed.
"""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "plamo-ref"
author = ""
html_show_copyright = html_show_sphinx = False
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # a page that was opened as a file may not read others
html_static_path, html_css_files = ["static"], ["site.css"]
extensions = ["myst_nb"]
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # the figure beside a widget says the same
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = project
html_math_renderer = "mathml"
# A lesson's output has lexers of its own; a heading that is skipped is a lesson's own affair.
suppress_warnings = ["misc.highlighting_failure", "myst.header", "mystnb.unknown_mime_type"]


def inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline, None), (display, None))

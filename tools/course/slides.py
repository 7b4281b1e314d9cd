"""Slides for the workshop's cuts, made from the lessons: one HTML file a cut, which works offline.

Invariant: a slide shows cells of the lesson as they were executed, and no solution; the file asks
nobody for anything, so it opens on a machine without network.

    python -m tools.course.slides build/slides
"""

import re
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import click
import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode

from tools.course.editions import number_of, student, tags

HALF_DAY = ("01", "03", "05", "07", "08")
ONE_DAY = ("00", "01", "02", "03", "05", "06", "07", "08", "09", "10", "17")
CUTS: dict[str, tuple[str, ...] | None] = {  # None: all lessons
    "half-day": HALF_DAY,
    "one-day": ONE_DAY,
    "two-days": None,
}
_HEADING = re.compile(r"^#{1,3} .*$", re.MULTILINE)
# To a heading (with its ¶) or to a file of the repository, which does not lie beside the slides.
_OWN_LINK = re.compile(r'<a (?:class="anchor-link" )?href="(?!https?:)[^"]*"[^>]*>(?:¶|(.*?))</a>')
_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_MOST_LINES = 12  # of code; more cannot be read from the last row
_SKIPPED = ("Set up", "Set-up")  # nobody projects imports

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ margin: 0; font: 1.6vw/1.45 sans-serif; color: #111; background: #fff; }}
section {{ display: none; box-sizing: border-box; height: 100vh; padding: 4vh 6vw; }}
section {{ overflow: auto; }}
section.now {{ display: block; }}
h1, h2, h3 {{ margin: 0 0 2vh; font-size: 2.6vw; line-height: 1.2; }}
h1 {{ font-size: 3.4vw; margin-top: 4vh; }}
pre {{ font-size: 1.3vw; line-height: 1.35; margin: 1vh 0; white-space: pre-wrap; }}
.code {{ background: #f3f3f3; padding: 1.5vh 1vw; border-left: 4px solid #0072B2; }}
img, svg {{ display: block; max-width: 100%; max-height: 58vh; width: auto; height: auto; }}
img {{ min-height: 40vh; }}
table {{ border-collapse: collapse; }}
td, th {{ padding: .4vh 1vw; border-bottom: 1px solid #ccc; }}
footer {{ position: fixed; right: 1vw; bottom: 1vh; font-size: 1vw; color: #555; }}
@media print {{ section {{ display: block; break-after: page; }} footer {{ display: none; }} }}

</style></head><body>
{slides}
<footer id="where"></footer>
<script>
const slides = [...document.querySelectorAll('section')];
let now = Math.min(slides.length, Math.max(1, parseInt(location.hash.slice(1)) || 1)) - 1;
function show(next) {{
  slides[now].classList.remove('now');
  now = Math.max(0, Math.min(slides.length - 1, next));
  slides[now].classList.add('now');
  history.replaceState(null, '', '#' + (now + 1));
  document.getElementById('where').textContent = (now + 1) + ' / ' + slides.length;
}}
addEventListener('keydown', event => {{
  if (['ArrowRight', 'ArrowDown', 'PageDown', ' ', 'Enter'].includes(event.key)) show(now + 1);
  if (['ArrowLeft', 'ArrowUp', 'PageUp', 'Backspace'].includes(event.key)) show(now - 1);
  if (event.key === 'Home') show(0);
  if (event.key === 'End') show(slides.length - 1);
}});
addEventListener('click', event => event.target.closest('a') || show(now + 1));
show(now);
</script></body></html>
"""


@dataclass
class Slide:
    """A heading with its text, and the cells below it of which one is shown."""

    heading: str
    text: str
    cells: list[NotebookNode] = field(default_factory=list)

    def shown(self) -> NotebookNode | None:
        """The first figure, else the first short cell that says something."""
        speaking = [cell for cell in self.cells if cell.outputs]
        pictures = [cell for cell in speaking if _picture(cell)]
        short = [c for c in speaking if len(c.source.splitlines()) <= _MOST_LINES]
        return next(iter(pictures or short), None)


def _picture(cell: NotebookNode) -> bool:
    kinds = [kind for output in cell.outputs for kind in output.get("data", {})]
    return any(kind.startswith("image/") for kind in kinds)


def slides_of(notebook: NotebookNode) -> list[Slide]:
    """One slide a heading, set-up and solutions left out."""
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    found: list[Slide] = []
    for cell in student(notebook).cells:
        if cell.cell_type == "markdown":
            found += _headed(cell.source)
        elif found and "self-check" not in tags(cell):
            shown = deepcopy(cell)
            shown.outputs = outputs[cell.id]
            found[-1].cells.append(shown)
    return [slide for slide in found if not any(word in slide.heading for word in _SKIPPED)]


def _headed(source: str) -> Iterator[Slide]:
    """The headings of a Markdown cell, each with the text down to the next (hints left out)."""
    source = re.sub(r"<details>.*?</details>", "", source, flags=re.DOTALL)
    # Fences keep their length but lose their "#", which would be headings.
    plain = _FENCE.sub(lambda fence: re.sub(r"\S", "x", fence[0]), source)
    starts = list(_HEADING.finditer(plain))
    ends = [*(match.start() for match in starts[1:]), len(source)][: len(starts)]
    for match, end in zip(starts, ends, strict=True):
        yield Slide(match[0], source[match.end() : end].strip())


def html(slide: Slide, exporter: HTMLExporter) -> str:
    parts = [markdown2html(f"{slide.heading}\n\n{slide.text}")]
    if (cell := slide.shown()) is not None:
        if not _picture(cell):
            parts.append(f'<pre class="code">{escape(cell.source)}</pre>')
        body, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
        parts.append(body)
    return "<section>\n" + _OWN_LINK.sub(r"\1", "\n".join(parts)) + "\n</section>"


def write(root: Path, cut: str, target: Path) -> int:
    """Write the slides of one cut; returns their number."""
    wanted = CUTS[cut]
    exporter = HTMLExporter(template_name="basic", exclude_input=True)
    sections = []
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        if wanted is None or number_of(path) in wanted:
            notebook = nbformat.read(path, as_version=4)
            sections += [html(slide, exporter) for slide in slides_of(notebook)]
    page = _PAGE.format(title=f"plamo-ref, {cut}", slides="\n".join(sections))
    target.write_text(page, encoding="utf-8")
    return len(sections)


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for cut in CUTS:
        target = folder / f"{cut}.html"
        count = write(Path(), cut, target)
        click.echo(f"{target}: {count} slides, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

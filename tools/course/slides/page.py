"""Slides as one HTML file, with its style and script inside.

Invariant: the file asks nobody for anything, and each slide has exactly one heading.
"""

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path

from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

from tools.course.slides.cells import Code, Picture, Said, Text
from tools.course.slides.layout import Clock, Prose, Slide
from tools.course.slides.prose import html, inline, plain_text

_STATIC = Path(__file__).parent / "static"
_LONG_HEADING = 60  # characters
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>
{style}</style></head><body><main>
{slides}
</main>
<script>
{script}</script></body></html>
"""


def page(title: str, slides: Sequence[Slide]) -> str:
    """The deck as a text of HTML. Keys: arrows, C for the clock, S for the speaker's window."""
    parts = [_section(slide, number, title) for number, slide in enumerate(slides, start=1)]
    return _PAGE.format(
        title=escape(title),
        style=(_STATIC / "deck.css").read_text(encoding="utf-8"),
        script=(_STATIC / "deck.js").read_text(encoding="utf-8"),
        slides="\n".join(parts),
    )


def _section(slide: Slide, number: int, title: str) -> str:
    places = [slide.kind, "beside" if slide.left else "", "tall" if slide.tall else ""]
    span = ""
    if slide.span:
        span = f' data-span="planned: minutes {slide.span[0]} to {slide.span[1]}"'
    for name, value in (("part", slide.part), ("row", slide.row)):
        span += f' data-{name}="{escape(value, quote=True)}"' if value else ""
    clock = "".join(_clock(box) for box in slide.boxes if isinstance(box, Clock))
    boxes = "\n".join(_box(box) for box in slide.boxes if not isinstance(box, Clock))
    heading, picture = _heading(slide, number, clock), _picture(slide)
    if slide.left:
        inside = f"{heading}\n{boxes}" if slide.tall else boxes
        boxes = f'<div class="column" style="width: {slide.left}px">\n{inside}\n</div>'
    body = f'<div class="body">\n{boxes}\n{picture}\n</div>'
    where = inline(slide.where) if slide.where != title else ""
    return f"""<div class="unit">
<section class="{" ".join(filter(None, places))}" id="slide-{number}"{span}
 style="--code: {slide.code_size}px; --prose: {slide.prose_size}px">
{"" if slide.tall else heading}
{body}
<footer><span>{escape(title)}</span><span>{where}</span><span>{number}</span></footer>
</section>
<aside id="notes-{number}">{slide.notes}</aside>
</div>"""


def _heading(slide: Slide, number: int, clock: str) -> str:
    level = 1 if number == 1 else 2
    at, of = slide.count
    count = f' <span class="count">{at} of {of}</span>' if of > 1 else ""
    long = ' class="long"' if len(plain_text(slide.heading)) > _LONG_HEADING else ""
    return f"<header><h{level}{long}>{inline(slide.heading)}</h{level}>{count}{clock}</header>"


def _box(box: Prose | Text | Code | Said) -> str:
    if isinstance(box, Prose | Text):
        return f'<div class="prose">{html(box.markdown)}</div>'
    if isinstance(box, Code):
        lines = highlight(box.source, PythonLexer(), _formatter()).rstrip()
        return f'<pre class="code">{lines}</pre>'
    verdict = " verdict" if box.verdict else ""
    return f'<pre class="said{verdict}">{escape(box.text)}</pre>'


def _clock(box: Clock) -> str:
    label = f"{box.minutes} minutes: start or stop the countdown"
    return (
        f'<button class="clock" data-minutes="{box.minutes}" aria-label="{label}">'
        f"{box.minutes}:00</button>"
    )


@lru_cache(maxsize=1)
def _formatter() -> HtmlFormatter:
    return HtmlFormatter(nowrap=True)


def _picture(slide: Slide) -> str:
    picture: Picture | None = slide.picture
    if picture is None:
        return ""
    width, height = (round(slide.scale * n) for n in (picture.width, picture.height))
    alt = escape(picture.alt, quote=True)
    return (
        f'<figure><img src="{picture.address}" alt="{alt}" width="{width}" height="{height}">'
        "</figure>"
    )

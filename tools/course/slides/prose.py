"""What of a text is projected, and Markdown as HTML without anything to fetch.

Invariant: a projected sentence stands in the lesson word for word; a text that is longer than its
room loses whole sentences, never parts of one. The whole text is in the speaker's notes.
"""

import re
from html import unescape

from latex2mathml.converter import convert
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

_CODE = r"`[^`\n]+`|\$[^$\n]+\$"
_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|[^)]*\.html)[^)]*\)")
# An end of a sentence, a blank, and what can begin one; \x00 stands for code.
_END = re.compile(r"(\S*[.?!][)\"*]*)\s+(?=[A-Z0-9\"*(\[Δ\x00])")
_NO_END = re.compile(r"\(?(?:e\.g|i\.e|cf|vs|\d+|[A-Z])\.")
_BLOCK = re.compile(r"(?:^[-*] |^\d+\. |^\||^> |^    |^```|^\$\$)")
_MATH = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def blocks(text: str) -> list[str]:
    """Paragraphs, lists, tables, formulas and fences of a text."""
    found: list[str] = []
    fence = False
    for piece in re.split(r"\n{2,}", text.strip()):
        if fence or (found and piece.startswith("    ") and found[-1].startswith("    ")):
            found[-1] += "\n\n" + piece
        else:
            found.append(piece)
        fence = fence != (piece.count("```") % 2 == 1)
    return [piece for block in found for piece in _lead_in(block) if piece.strip()]


def _lead_in(block: str) -> list[str]:
    """A paragraph that runs into a list or a quote without a blank line is two blocks."""
    lines = block.split("\n")
    if is_shown_whole(block):
        return [block]
    for place, line in enumerate(lines):
        if place and _BLOCK.match(line) and not line.startswith("    "):
            return ["\n".join(lines[:place]), "\n".join(lines[place:])]
    return [block]


def is_shown_whole(block: str) -> bool:
    """Whether it is a list, a table, a formula or code, of which no sentence can be taken."""
    return _BLOCK.match(block) is not None


def sentences(paragraph: str) -> list[str]:
    """Of a paragraph; what is code or a formula does not end one."""
    held: list[str] = []

    def hide(match: re.Match[str]) -> str:
        held.append(match[0])
        return f"\x00{len(held) - 1}\x01"

    plain = re.sub(_CODE, hide, " ".join(paragraph.split()))
    ended = _END.sub(lambda m: m[0] if _NO_END.fullmatch(m[1]) else f"{m[1]}\n", plain)
    found: list[str] = []
    for piece in filter(None, ended.split("\n")):
        if found and found[-1].count("(") > found[-1].count(")"):
            found[-1] += f" {piece}"  # what stands in one pair of brackets
        else:
            found.append(piece)
    shown = (re.sub("\x00(\\d+)\x01", lambda m: held[int(m[1])], piece) for piece in found)
    return [piece for piece in shown if "live kernel" not in piece]  # nobody scrubs a slide


def gist(text: str, most: int) -> list[str]:
    """Blocks to project, of at most about `most` characters.

    Lists, formulas and tables whole; of paragraphs the first sentence, then the last one that leads
    to what follows, then those with a bold word, then the others from the front while they fit.
    """
    split = [[b] if is_shown_whole(b) else sentences(b) for b in blocks(text)]
    prose = [(i, j) for i, some in enumerate(split) for j, _ in enumerate(some)
             if not is_shown_whole(some[0])]  # fmt: skip
    whole = [(i, 0) for i, some in enumerate(split) if is_shown_whole(some[0])]
    room = most - sum(len(plain_text(split[i][0])) for i, _ in whole)
    leading = [p for p in prose[-1:] if split[p[0]][p[1]].endswith(":")]
    bold = [p for p in prose if "**" in split[p[0]][p[1]]]
    first = [p for p in prose if p[1] == 0]
    taken = set(whole)
    for place in dict.fromkeys([*prose[:1], *leading, *bold, *first, *prose]):
        length = len(plain_text(split[place[0]][place[1]]))
        if length <= room or (place == prose[0] and not whole):
            taken.add(place)
            room -= length
    kept = ([s for j, s in enumerate(some) if (i, j) in taken] for i, some in enumerate(split))
    return [" ".join(some) for some in kept if some]


def plain_text(markdown: str) -> str:
    """Without marks, as long as it will look."""
    text = _LINK.sub(r"\1", re.sub(r"\[([^\]]*)\]\(https?:[^)]*\)", r"\1", markdown))
    text = re.sub(r"<[^>]+>", "", text)
    return unescape(re.sub(r"\*\*|`|(?<!\w)[*_]|[*_](?!\w)", "", text))


def html(markdown: str) -> str:
    """Links into the repository lose their address: its files do not lie beside the slides."""
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    text = _LINK.sub(r"\1", re.sub(r"^#{1,3} ", "#### ", markdown, flags=re.MULTILINE))
    return formulas(MarkdownWithMath(renderer=renderer).render(text).strip())


def inline(markdown: str) -> str:
    """HTML of a heading or a sentence, without its paragraph."""
    text = re.sub(r"^(\d+)\. ", r"\1\\. ", markdown.replace("\n", " "))  # no list
    return re.sub(r"^<p>(.*)</p>$", r"\1", html(text), flags=re.DOTALL)


def formulas(text: str) -> str:
    """TeX as MathML, outside of code."""
    pieces = re.split(r"(<(?:code|pre)\b.*?</(?:code|pre)>)", text, flags=re.DOTALL)
    for place in range(0, len(pieces), 2):
        pieces[place] = _MATH.sub(
            lambda m: convert(unescape(m[1] or m[2]), display="block" if m[1] else "inline"),
            pieces[place],
        )
    return "".join(pieces)

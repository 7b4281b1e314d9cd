"""Places in a text that a command fills: `<!-- NAME -->`, what it made, `<!-- end -->`.

Invariant: nothing outside the two marks changes, and a text without them is refused.
"""


def fill(text: str, name: str, content: str) -> str:
    """`text` with `content` between the mark of this name and the next `<!-- end -->`.

    Raises:
        ValueError: a mark is missing.
    """
    before, start, rest = text.partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (start and end):
        raise ValueError(f"no place to fill: expected the lines <!-- {name} --> and <!-- end -->")
    return f"{before}{start}{content}\n{end}{after}"

"""`python -m tools.ledger`: docs/ledger.md with its pictures, and the table of README.md.

Invariant: all of them say what notebooks/recorded says at this moment.
"""

from pathlib import Path

from tools.ledger.page import page
from tools.ledger.peer import README_MARK, readme_words
from tools.ledger.plots import PLOTS, png
from tools.ledger.records import records_of
from tools.marks import fill

ROOT = Path(__file__).parents[2]
DOCS, RECORDED = ROOT / "docs", ROOT / "notebooks" / "recorded"


def with_peer_table(readme: str) -> str:
    """The text of README.md, its table made anew."""
    (record,) = records_of("gpu_peer", RECORDED)
    return fill(readme, README_MARK, readme_words(record))


def main() -> None:
    alts = {}
    for name, plot in PLOTS.items():
        figure, alts[name] = plot.draw(plot.data(RECORDED))
        (DOCS / f"ledger_{name}.png").write_bytes(png(figure, plot.digest(RECORDED)))
    (DOCS / "ledger.md").write_text(page(RECORDED, alts), encoding="utf-8")
    readme = ROOT / "README.md"
    text = with_peer_table(readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Slides for a class: a deck a lesson and a deck a cut, each one file that works offline.

Invariant: what is projected stands in the lesson as it was executed, fits the screen, and tells no
solution. The notebook is the only source: its prose becomes the speaker's notes, the page in
course/lessons gives minutes and questions. Metadata decide where a rule would choose badly:
`slideshow.slide_type: skip` hides a cell, `slides.show` names those of its definitions that are
shown (or "all": the whole cell), `slides.break` puts a break of so many minutes before it.

    python -m tools.course.slides build/slides
"""

HALF_DAY = ("01", "03", "05", "07", "08")
ONE_DAY = ("00", "01", "02", "03", "05", "06", "07", "08", "09", "10", "17")
CUTS: dict[str, tuple[str, ...] | None] = {  # None: all lessons
    "half-day": HALF_DAY,
    "one-day": ONE_DAY,
    "two-days": None,
}

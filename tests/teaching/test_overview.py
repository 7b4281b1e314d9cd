"""The picture at the head of the README is the one that the package would draw now.

Invariant tested: the file says the words and numbers of today's scheduler, config and walk.
"""

from pathlib import Path

import pytest
from PIL import Image

from plamo_ref.config import Plamo2Config
from plamo_ref.intake.hub import find
from plamo_ref.teaching import overview

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("files", [files for _, files in overview.STATIONS])
def test_a_station_names_what_exists(files):
    for name in files.split(", "):
        place = ROOT / "plamo_ref" / name
        assert place.is_dir() if name.endswith("/") else place.is_file(), name


def test_the_file_is_what_would_be_drawn_now():
    config = Plamo2Config.from_file(find("tiny") / "config.json")
    said = overview.words(overview.overview(config))
    assert "engine/scheduling/\nscheduler_v1.py" in said
    picture = Image.open(ROOT / "docs" / "overview.png")
    command = "python -m plamo_ref.teaching.overview docs/overview.png"
    assert picture.text["Description"] == said, f"run: {command}"
    assert command in overview.__doc__


def test_the_readme_shows_it():
    assert "](docs/overview.png)" in (ROOT / "README.md").read_text(encoding="utf-8")

"""`python -m tools.course.site build/site`: the site, which opens without a network."""

import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tools.course.site.sources import gather


@click.command()
@click.argument("target", type=click.Path(file_okay=False, path_type=Path))
@click.option("--lessons", default="", help="Numbers, as in 05,14; default: all there is.")
def main(target: Path, lessons: str) -> None:
    """Build the site in the folder TARGET; index.html is where it begins."""
    with tempfile.TemporaryDirectory() as folder:
        gather(Path(folder), [n for n in lessons.split(",") if n])
        command = ["-m", "sphinx", "-q", "-b", "html", "-c", str(Path(__file__).parent)]
        command += ["-W", "--keep-going", folder, str(target)]
        done = subprocess.run([sys.executable, *command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"{target}/index.html")


if __name__ == "__main__":
    main()

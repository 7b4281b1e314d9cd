"""What the doctor says, a line at a time, and the facts that both of its reports need.

Invariant: a finding that is not good says what to do.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

PROJECT = "plamo-ref"
PURPOSES = {  # extra → what it is for
    "": "generating text",
    "notebooks": "the lessons",
    "server": "the HTTP server",
    "train": "training a small model",
    "test": "make test",
}


@dataclass(frozen=True)
class Finding:
    """One line: whether something works, what it is, and what to do if it does not."""

    ok: bool
    what: str
    todo: str = ""

    def __str__(self) -> str:
        return f"{'✓' if self.ok else '✗'} {self.what}" + (f": {self.todo}" if self.todo else "")


def packages() -> Iterator[Finding]:
    """One finding for the dependencies of the project and one for those of each extra."""
    from packaging.requirements import Requirement

    requirements = [Requirement(line) for line in metadata.requires(PROJECT) or ()]
    for extra, purpose in PURPOSES.items():
        found, wrong = [], []
        for requirement in requirements:
            of_extra = "extra ==" in str(requirement.marker)
            marker = requirement.marker
            wanted = of_extra == bool(extra) and (
                marker is None or marker.evaluate({"extra": extra})
            )
            if not wanted or requirement.name == PROJECT:
                continue
            version = version_of(requirement.name)
            if version is None or not requirement.specifier.contains(version, prereleases=True):
                wrong.append(
                    f"{requirement.name}{requirement.specifier} (found {version or 'none'})"
                )
            else:
                found.append(f"{requirement.name} {version}")
        command = f"pip install '{PROJECT}[{extra}]'" if extra else f"pip install {PROJECT}"
        todo = f"{command} for {', '.join(wrong)}" if wrong else ""
        yield Finding(not wrong, f"packages for {purpose}: {', '.join(found) or 'none'}", todo)


def version_of(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows has no sysconf
        return None

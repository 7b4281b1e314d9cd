"""Copies of a PLaMo 2 in another engine's format: which it is, and where the original lies.

Invariant: nothing here is read or converted. Whoever comes with a copy is told its format's name
and the hub id of what it was made from, as far as its own name says so.
"""

from pathlib import Path

PUBLISHED = (  # by the makers, as safetensors
    "pfnet/plamo-2-1b",
    "pfnet/plamo-2-8b",
    "pfnet/plamo-2-translate",
    "pfnet/plamo-2-translate-base",
    "pfnet/plamo-2-translate-eval",
    "pfnet/plamo-2.1-2b-cpt",
    "pfnet/plamo-2.1-8b-cpt",
    "pfnet/plamo-2.1-2b-vl",
    "pfnet/plamo-2.1-8b-vl",
)
GGUF = "GGUF, llama.cpp's format"


def original_of(name: str | Path) -> str:
    """The checkpoint from which something of this name, or in this folder, was made."""
    name = str(name).lower()
    known = [one for one in PUBLISHED if one.partition("/")[2] in name]
    return max(known, key=len) if known else "the makers' own, such as pfnet/plamo-2-1b"


def is_gguf(name: str | Path) -> bool:
    """Whether a file, or a repository, says that it is in llama.cpp's format."""
    name = str(name).lower()
    return name.endswith(".gguf") or "gguf" in name.rpartition("/")[2].split("-")


def gguf_in(folder: Path) -> str | None:
    """What is to be said of a folder with such files; None: it has none."""
    files = sorted(file.name for file in folder.glob("*.gguf"))
    return f"{files[0]} ({advice(folder)})" if files else None


def advice(name: str | Path) -> str:
    """On a copy in llama.cpp's format."""
    return f"{GGUF}: take the original, {original_of(name)}"

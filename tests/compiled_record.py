"""What a compiler makes of a launch, and a record of it: kernels/compiled.json.

    python tests/compiled_record.py     # writes it anew, when a kernel or a launch has changed

To compile is a function: of a kernel's source, of the way it is launched, of the compiler and of
the device. The 500 launches of the published models keep a core busy for seven minutes, so what
came out is on record, under a hash of what went in.

Invariant: a launch is compiled if what goes in is not on record (another Triton, an edited kernel),
if this is its day (one launch in 20 a day), and always in a nightly run (HYPOTHESIS_PROFILE); what
comes out of a launch that is on record has to be what the record says.
"""

import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

from compiled_launches import Launch, Source, on_record, source, triton
from machine_code import Usage, usage
from tqdm import tqdm

HERE = Path(__file__).parent
RECORD = HERE / "kernels" / "compiled.json"
CURE = "python tests/compiled_record.py"
MADE_WITH = f"Triton {triton.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}"
DAYS = 20  # until each launch on record has had its day
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"


def key_of(source: Source) -> str:
    """Of all that decides what comes out, how it is read included."""
    readers = [(HERE / name).read_bytes() for name in ("machine_code.py", "races.py")]
    text = f"{triton.__version__} {source.made.hash()} {source.capability} {source.options}"
    return sha256(b"".join([text.encode(), *readers])).hexdigest()[:20]


@dataclass(frozen=True)
class Record:
    made_with: str
    usages: dict[str, Usage]  # by key

    @classmethod
    @cache
    def read(cls) -> "Record":
        found = json.loads(RECORD.read_text(encoding="utf-8"))
        launches = {each.pop("key"): each for each in found["launches"]}
        for each in launches.values():
            del each["kernel"]
        return cls(found["made with"], {key: Usage(**each) for key, each in launches.items()})


class Compiler:
    """Usage of a launch, on record or from the compiler; each is compiled once."""

    def __init__(self, record: Record, every: bool = NIGHTLY, day: int | None = None) -> None:
        """every: compile those on record too. day: whose turn it is; None: that of today."""
        self._record, self._every, self._compiled = record, every, dict[str, Usage]()
        self._day = datetime.now(UTC).toordinal() if day is None else day

    def __call__(self, launch: Launch, capability: int) -> Usage:
        what = source(launch, capability)
        key = key_of(what)
        known = self._record.usages.get(key)
        has_its_day = (int(key, 16) - self._day) % DAYS == 0
        if known is not None and not has_its_day and not self._every:
            return known
        if key not in self._compiled:
            self._compiled[key] = usage(what.compile())
        found = self._compiled[key]
        assert known in (None, found), f"{launch.kernel.__name__} is not as on record: {CURE}"
        return found


def write() -> None:
    """Compile all, with all cores."""
    keys = {key_of(each): place for place, each in enumerate(on_record())}
    with ProcessPoolExecutor() as pool:
        lines = sorted(tqdm(pool.map(_line, keys.values()), total=len(keys)))
    head = {"made by": CURE, "made with": MADE_WITH}
    text = json.dumps(head | {"launches": []})
    RECORD.write_text(
        text.replace("[]", "[\n" + ",\n".join(lines) + "\n]") + "\n", encoding="utf-8"
    )


def _line(place: int) -> str:
    what = on_record()[place]
    name = f"{what.made.fn.__name__} for sm_{what.capability}"
    return json.dumps({"kernel": name, "key": key_of(what)} | asdict(usage(what.compile())))


if __name__ == "__main__":
    write()

"""Whether an engine process hangs, by what the front has heard from it.

Invariant: a process that says nothing, or whose loop does not come on, is late, after
`stall_seconds` at the earliest; one that loads, compiles, or computes at its usual pace is not.

Time is counted in the ticks of whoever asks: while the front itself is stopped, nothing counts.
"""

from plamo_ref.remote.messages import Alive, ToFront

SLOWER = 4.0  # times as long as the slowest before: that is no hang
QUIET_LOADING = 6.0  # times `stall_seconds`: a library's long calls keep the heartbeat out
COMPILING_SECONDS = 900.0


class Pulse:
    """Of one engine process."""

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._silent = 0.0  # seconds since anything was heard
        self._alive: Alive | None = None  # what the loop was doing; None: nothing was heard yet

    def hear(self, message: ToFront) -> None:
        """Something has come: a heartbeat, or, which is better, a word of the loop itself."""
        self._silent = 0.0
        self._alive = message if isinstance(message, Alive) else Alive("idle", 0.0)

    def pass_by(self, seconds: float) -> None:
        """Time passes, and nothing is heard."""
        self._silent += seconds

    @property
    def late(self) -> float:
        """Seconds beyond what can be explained; 0 or less: it lives."""
        alive = self._alive
        if alive is None:
            return self._silent - COMPILING_SECONDS  # Python itself is starting
        quiet = self._stall_seconds * (QUIET_LOADING if alive.phase == "loading" else 1.0)
        busy = alive.seconds + self._silent
        allowed = {
            "step": self._stall_seconds + SLOWER * alive.expected,
            "working": self._stall_seconds,
            "compiling": COMPILING_SECONDS,
        }.get(alive.phase)
        late = self._silent - quiet
        return late if allowed is None else max(late, busy - allowed)

    def __str__(self) -> str:
        alive = self._alive
        if alive is None or self._silent > self._stall_seconds:
            return f"it hung: no sign of life for {self._silent:.0f} s"
        where = f", at {alive.where}" if alive.where else ""
        return f"it hung: in one {alive.phase} for {alive.seconds:.0f} s{where}"

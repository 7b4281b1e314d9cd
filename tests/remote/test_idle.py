"""What an engine does while nobody asks for anything.

Invariant tested: before it is ready it records steps for its time; idle, it records one at a time
and looks for requests between two; a request that has come is computed before anything is recorded.
"""

from types import SimpleNamespace

from plamo_ref.remote.process import IDLE_MS, EngineLoop


class Rooms:
    """Recordings that can be made: so many."""

    def __init__(self, left: int, log: list[str]) -> None:
        self.left, self._log = left, log

    def record_one(self) -> bool:
        if not self.left:
            return False
        self.left -= 1
        self._log.append("record")
        return True

    def record_for(self, seconds: float) -> bool:
        self._log.append(f"record for {seconds}")
        return self.left > 0


class Loop(EngineLoop):
    """An engine's loop without a channel: what comes is a script, a turn of the loop each."""

    def __init__(self, rooms: Rooms | None, script: list[str], log: list[str]) -> None:
        self.core = SimpleNamespace(has_work=False, warm_up=rooms)
        self._warm_up, self._open, self._compiling = rooms, True, {}
        self._heart = SimpleNamespace(now=lambda *_: None)
        self._script, self._log = script, log

    def _receive(self) -> None:
        self._log.append(f"wait {self._patience}")
        came = self._script.pop(0)
        self.core.has_work = came == "request"
        self._open = came != "end"

    def _take_compiled(self) -> None:
        pass

    def _next_tokens(self) -> int:
        return 1

    def _step(self) -> None:
        self._log.append("step")


def test_between_two_recordings_it_looks_for_requests_and_serves_them_first():
    log: list[str] = []
    Loop(Rooms(2, log), ["nothing", "request", "nothing", "nothing", "nothing", "end"], log).run()
    idle = f"wait {IDLE_MS}"
    assert log == [
        *(idle, "record", idle, "step", "wait 0", "record", idle),
        *("wait None", "wait None"),  # nothing is left: it sleeps until something comes
    ]


def test_without_recordings_it_waits_for_requests():
    log: list[str] = []
    Loop(None, ["request", "nothing", "end"], log).run()
    assert log == ["wait None", "step", "wait 0", "wait None"]


def test_the_time_before_it_is_ready_is_bounded_and_the_rest_is_for_idle_moments():
    log: list[str] = []
    loop = Loop(Rooms(1, log), ["nothing", "end"], log)
    loop.warm_up(1.5)
    loop.run()
    assert log == ["record for 1.5", f"wait {IDLE_MS}", "record", f"wait {IDLE_MS}"]
    log.clear()
    done = Loop(Rooms(0, log), ["end"], log)
    done.warm_up(2)
    done.run()
    assert log == ["record for 2", "wait None"]

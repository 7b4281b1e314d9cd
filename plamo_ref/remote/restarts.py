"""How soon an engine that has gone is started again, and when it no longer is.

Invariant: restarts never come faster than a pace that halves with each life that achieved nothing;
only engines that die by themselves are given up, not those that died over a request.

A request that kills each engine it comes to (a "poison" request) must not end the server: whoever
can send one could send four. So a death while requests were under way is counted to them; nobody
retries them, and the next engine does not know them. What dies while loading or idle, again and
again, is broken.
"""

from dataclasses import dataclass

STABLE_SECONDS = 10.0  # an engine that was ready so long did not die of its start
FIRST_DELAY = 0.5  # seconds between an end and the next start
MAX_DELAY = 10.0


@dataclass(frozen=True)
class Life:
    """What an engine process achieved before it went."""

    ready_seconds: float = 0.0  # 0: it never was
    served: bool = False  # it finished a request
    num_requests: int = 0  # under way when it went

    @property
    def is_proof(self) -> bool:
        """Whether it shows that the engine works."""
        return self.served or self.ready_seconds > STABLE_SECONDS


class Restarts:
    """The books of one server.

    Args:
        most: how often in a row an engine may die by itself, and be started again; 0: never,
            whatever it died of.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._deaths = 0  # in a row: by itself, without proof that it works
        self._delay = FIRST_DELAY

    def delay_after(self, life: Life) -> float | None:
        """Seconds to wait before the next start; None: it is given up."""
        if life.is_proof:
            self._deaths, self._delay = 0, FIRST_DELAY
        self._deaths += not life.num_requests
        if not self._most or self._deaths > self._most:
            return None
        delay, self._delay = self._delay, min(MAX_DELAY, 2 * self._delay)
        return delay

    def __str__(self) -> str:
        if not self._most:
            return "and --engine-restarts 0 allows no other"
        return f"the {self._deaths}. in a row that achieved nothing, with no request to blame"

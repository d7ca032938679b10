"""A circuit breaker: after enough failures in a row no call is made for a while, then a few calls probe. Pure.

Instants are seconds of any clock that only goes forward; the caller passes them in.
"""

from typing import Literal

FAILURES_MAX = 8  # in a row, until it opens
PROBES_MAX = 2
OPEN_S = 2.0
OPEN_S_MAX = 30.0

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")  # as the metric counts them


class Breaker:
    """Closed: all calls may begin. Open: none. Half open: a few probes, of which the first to return decides."""

    def __init__(self) -> None:
        self.state: State = "closed"
        self._failures = 0
        self._probes = 0
        self._wait_s = OPEN_S
        self._opened_at = 0.0

    def room(self, wanted: int, now_s: float) -> int:
        """How many of `wanted` calls may begin now."""
        if self.state == "open" and now_s - self._opened_at >= self._wait_s:
            self.state, self._probes = "half_open", PROBES_MAX
        if self.state == "closed":
            return wanted
        return min(wanted, self._probes) if self.state == "half_open" else 0

    def began(self) -> None:
        """A call begins."""
        self._probes = max(self._probes - 1, 0)

    def succeeded(self) -> None:
        """The provider answered, also if it declined."""
        self._failures = 0
        if self.state == "half_open":  # the answer to a call from before it opened is no probe
            self.state, self._wait_s = "closed", OPEN_S

    def failed(self, now_s: float) -> bool:
        """A call gave no answer; whether the breaker opened by it."""
        self._failures += 1
        if self.state == "half_open":
            self._wait_s = min(self._wait_s * 2, OPEN_S_MAX)
        elif self.state == "open" or self._failures < FAILURES_MAX:
            return False
        self.state, self._opened_at = "open", now_s
        return True

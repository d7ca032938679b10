"""The broker's clock, as well as a gateway can know it. It asks no clock but the one that it is given."""

import time
from collections.abc import Callable


class BrokerClock:
    """The broker's time, at the latest that is known to have come, from the append times of records seen.

    A record was appended before it was seen, so the greatest (append time - time seen) is a lower bound of the
    difference of the clocks, and a good one if the record is young. It is forgotten after a minute: clocks are set.
    """

    MEMORY_S = 60.0
    AGE_S_MAX = 1.0

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._ahead_ms: float | None = None
        self._seen = 0.0

    def saw(self, appended_at_ms: int, age_s: float) -> None:
        """A record with this append time was appended at most `age_s` ago; an old one says nothing about now."""
        if age_s > self.AGE_S_MAX:
            return
        now = self._clock()
        ahead = appended_at_ms - now * 1000
        if self._ahead_ms is None or ahead > self._ahead_ms or now - self._seen > self.MEMORY_S:
            self._ahead_ms, self._seen = ahead, now

    def now_ms(self) -> int | None:
        """Broker time in milliseconds; None while no record was seen."""
        return None if self._ahead_ms is None else int(self._clock() * 1000 + self._ahead_ms)

    def shown_ms(self) -> int:
        """The time to show to people: the broker's, or our own while that is unknown."""
        return self.now_ms() or int(self._clock() * 1000)

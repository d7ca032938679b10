"""When a process that died is started again, and when the supervisor gives up. Pure: time comes in as numbers."""

from dataclasses import dataclass

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
FAILURES_MAX = 5
SETTLED_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How often in a row a process ended without having been of use."""

    failures: int = 0

    def after_exit(self, was_healthy: bool, up_s: float) -> "Backoff":
        """Count one end: having been healthy, or up for long, wipes the record."""
        return Backoff() if was_healthy or up_s >= SETTLED_AFTER_S else Backoff(self.failures + 1)

    @property
    def exhausted(self) -> bool:
        """Starting it once more would not help."""
        return self.failures >= FAILURES_MAX

    @property
    def delay_s(self) -> float:
        """How long to wait before the next start."""
        return float(min(LONGEST_DELAY_S, FIRST_DELAY_S * 2 ** max(0, self.failures - 1)))

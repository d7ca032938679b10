"""When to try again, and after how long. Pure.

Only what the server calls retryable *and* harmless to repeat at once is repeated: a request that may not have arrived,
one that is still on its way, an overloaded or restarting server. `sold-out` may change too, but that is the buyer's
decision, not a matter of transport.
"""

from typing import NamedTuple

_AGAIN = frozenset({"in-flight", "overloaded", "outcome-unknown", "unavailable", "rate-limited", "internal-error"})


class Retries(NamedTuple):
    """At most `attempts` in all; pauses double from `first_s` to `longest_s`, each cut by chance to half at most."""

    attempts: int = 6
    first_s: float = 0.1
    longest_s: float = 5.0

    def pause(self, attempt: int, told_s: float | None, chance: float) -> float | None:
        """Seconds to wait after the `attempt`-th try (from 1) failed; None: give up.

        Args:
            attempt: how many were made.
            told_s: the server's Retry-After, which is waited at least; if it is longer than `longest_s`, give up.
            chance: between 0 and 1; those turned away together must not come back together.
        """
        if attempt >= self.attempts or (told_s or 0) > self.longest_s:
            return None
        doubled = self.first_s * float(2 ** (attempt - 1))
        return (told_s or 0) + min(doubled, self.longest_s) * (0.5 + chance / 2)


def worth_repeating(kind: str) -> bool:
    """Whether a problem of this kind passes by itself."""
    return kind in _AGAIN

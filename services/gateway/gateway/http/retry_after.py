"""Problems of purchases: try again later, or never with this body."""

import random

from gateway.http import problems
from ratelimit.limiter import Verdict
from service.problem_details import Problem

NOTHING_DONE = "Too many requests are waiting; nothing was done."


def overloaded(detail: str = NOTHING_DONE, least_s: int = 1, *, close: bool = False) -> Problem:
    """503 with a Retry-After of `least_s` to three times as much, against thundering herds; nothing was done."""
    seconds = random.randint(least_s, 3 * least_s)  # noqa: S311 - jitter is no secret
    return Problem(problems.OVERLOADED, detail, retry_after_s=seconds, close=close)


def key_reused() -> Problem:
    """One key, two bodies."""
    return Problem(problems.KEY_REUSED, "Its first request had another body; use a new key for a new purchase.")


def undecided() -> Problem:
    """Another body with this key came first, and is not decided yet."""
    return Problem(problems.IN_FLIGHT, "Another body with this key is not decided yet.", retry_after_s=1)


def limited(verdict: Verdict) -> Problem:
    """The rate limits refused it."""
    headers = tuple((name.lower().encode(), value.encode()) for name, value in verdict.headers().items())
    return Problem(problems.RATE_LIMITED, "Come back later; nothing was done.", headers=headers)


def outcome_unknown(advice: str = "Send the same request with the same Idempotency-Key again.") -> Problem:
    """The log did not acknowledge it in time: it may stand there, or land later, or never."""
    return Problem(
        problems.OUTCOME_UNKNOWN,
        f"The log did not acknowledge in time. {advice}",
        extra={"outcome": "unknown"},
        retry_after_s=1,
    )

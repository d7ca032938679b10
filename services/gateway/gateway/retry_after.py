"""Refusals for want of room: each names another time to come back, lest those sent away come back as one crowd."""

import random

from gateway import problems
from gateway.problems import Problem

NOTHING_DONE = "Too many requests are waiting; nothing was done."


def overloaded(detail: str = NOTHING_DONE, least_s: int = 1, *, close: bool = False) -> Problem:
    """503 with a Retry-After of `least_s` to three times as much; nothing was done."""
    seconds = random.randint(least_s, 3 * least_s)  # noqa: S311 - jitter is no secret
    return Problem(problems.OVERLOADED, detail, retry_after_s=seconds, close=close)

"""What is limited: policies written in one line, and the names under which a caller's use is counted.

Pure: no I/O, clock or randomness.
"""

import ipaddress
import re
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache

POLICIES_MAX = 8
# A sliding window remembers each admitted request; more than this belongs into a token bucket.
SLIDING_QUOTA_MAX = 1_000
# Use is counted in units of 1/quota microsecond; Lua's numbers are exact up to 2**53.
EXACT_MAX = 2**52
ADDRESSES_CACHED_MAX = 65_536

SCOPES = ("user", "address")
_UNITS_US = {"s": 1_000_000, "min": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}
_FORM = re.compile(r"(?P<quota>\d{1,9})/(?P<count>\d{0,6})(?P<unit>s|min|h|d)(?:/(?P<burst>\d{1,9}))?")


class Algorithm(IntEnum):
    """How use is counted. The number is part of a key in Redis: 1 and 2 were kept there in another form."""

    TOKEN_BUCKET = 3
    SLIDING_WINDOW = 4


@dataclass(frozen=True)
class Policy:
    """`quota` requests per `window_us`, for each user or each client address.

    A token bucket lets `burst` through at once and refills at quota/window; a sliding window lets at most
    `quota` through in any window (its burst is its quota). `name` is what buyers see in the RateLimit headers.
    """

    name: str
    scope: str
    algorithm: Algorithm
    quota: int
    window_us: int
    burst: int

    def __hash__(self) -> int:
        return hash(self.name)  # asked for several times a request; the generated one would hash six fields

    @cached_property
    def key_prefix(self) -> str:
        """Where this policy's use is kept: a changed policy starts anew rather than misread the old one's."""
        return f"{{rl}}:{self.scope}:{self.algorithm:d}:{self.quota}:{self.window_us}:{self.burst}:"

    @cached_property
    def header(self) -> str:
        """The value of `RateLimit-Policy`; the window in seconds, rounded up."""
        return f'"{self.name}";q={self.quota};w={-(-self.window_us // 1_000_000)}'

    def share(self, gateways: int) -> "Policy":
        """This policy for one of `gateways` that cannot ask each other: the rates add up to the whole again.

        Each keeps a capacity of at least one, so the capacities may add up to `gateways` - 1 too many.
        """
        burst = max(1, self.burst // gateways)
        quota = burst if self.algorithm is Algorithm.SLIDING_WINDOW else self.quota
        window_us = -(-self.window_us * gateways * quota // self.quota)
        return Policy(self.name, self.scope, self.algorithm, quota, window_us, burst)


def parse_policies(text: str) -> tuple[Policy, ...]:
    """Read `scope:algorithm:quota/window[/burst]`, comma-separated; empty text is no policy.

    Scopes: user, address. Algorithms: token_bucket, sliding_window. Windows: s, min, h, d, or several (`10s`).
    The first policy of a scope is named after it, the next `user-2`. Raises ValueError naming the faulty part.
    """
    policies: list[Policy] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        policy = _parse_one(part, policies)
        if any(other.key_prefix == policy.key_prefix for other in policies):
            raise ValueError(f"limit {part!r} is there twice")
        policies.append(policy)
    if len(policies) > POLICIES_MAX:
        raise ValueError(f"{len(policies)} limits are more than {POLICIES_MAX}")
    return tuple(policies)


def _parse_one(part: str, before: list[Policy]) -> Policy:
    scope, _, rest = part.partition(":")
    algorithm_name, _, rate = rest.partition(":")
    if scope not in SCOPES:
        raise ValueError(f"limit {part!r}: scope {scope!r} is none of {', '.join(SCOPES)}")
    try:
        algorithm = Algorithm[algorithm_name.upper()]
    except KeyError:
        known = ", ".join(each.name.lower() for each in Algorithm)
        raise ValueError(f"limit {part!r}: algorithm {algorithm_name!r} is none of {known}") from None
    form = _FORM.fullmatch(rate)
    if not form:
        raise ValueError(f"limit {part!r}: {rate!r} is not like 5/s, 60/min, 100/10s or, with a burst, 5/s/10")
    quota, window_us = int(form["quota"]), int(form["count"] or 1) * _UNITS_US[form["unit"]]
    burst = int(form["burst"] or quota)
    if not (quota and window_us and burst):
        raise ValueError(f"limit {part!r}: quota, window and burst must be at least 1")
    if algorithm is Algorithm.SLIDING_WINDOW and form["burst"]:
        raise ValueError(f"limit {part!r}: a sliding window has no burst of its own")
    if algorithm is Algorithm.SLIDING_WINDOW and quota > SLIDING_QUOTA_MAX:
        raise ValueError(f"limit {part!r}: a sliding window holds at most {SLIDING_QUOTA_MAX}; use token_bucket")
    if burst * window_us > EXACT_MAX:
        raise ValueError(f"limit {part!r}: burst times window is too large to count exactly")
    earlier = sum(other.scope == scope for other in before)
    return Policy(f"{scope}-{earlier + 1}" if earlier else scope, scope, algorithm, quota, window_us, burst)


@lru_cache(maxsize=ADDRESSES_CACHED_MAX)
def network_of(address: str) -> str:
    """Under which name a client address is counted: IPv4 whole, IPv6 by its /64, as one customer holds that many.

    Text that is no address shares one name, so that it is limited rather than let through.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return f"{ipaddress.IPv6Address(int(parsed) >> 64 << 64)}/64"

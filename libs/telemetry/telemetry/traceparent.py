"""What a W3C `traceparent` string (`00-<trace id>-<span id>-<flags>`) says of its trace. Pure.

It must not know OpenTelemetry: the rules of the services read traces too.
"""

_LENGTH = 55


def sampled(traceparent: str | None) -> bool:
    """Whether the trace is recorded: the lowest bit of its flag byte."""
    return traceparent is not None and len(traceparent) == _LENGTH and traceparent[-1] in "13579bdf"


def trace_id_in(traceparent: str | None) -> str | None:
    """The 32 hex digits of the trace, if a whole traceparent is given."""
    return traceparent[3:35] if traceparent and len(traceparent) == _LENGTH else None


def trace_id_of(traceparent: str) -> str:
    """The 32 hex digits of the trace, for logs and answers."""
    return traceparent[3:35]

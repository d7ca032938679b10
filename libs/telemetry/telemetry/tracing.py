"""Spans written after the fact, and the W3C `traceparent` strings that connect them.

The hot path keeps a string and two clock readings, and calls `record` once the work is over; an unsampled
purchase costs one look at the string's flag. Nothing here may raise into, block or slow the purchase path:
the queue is bounded, a full queue or disk drops spans and counts them.
"""

import atexit
import os
import random
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from telemetry.traceparent import sampled

QUEUE_SPANS_MAX = 16_384
EXPORT_BATCH_SPANS_MAX = 512
EXPORT_DELAY_MS = 250  # a kill -9 loses at most this much and one write

Kind = SpanKind
Attribute = str | int | float | bool
_FORM = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_encode = msgspec.json.Encoder().encode


def new_traceparent(sample: float) -> str:
    """Start a trace with a random id; it is sampled with probability `sample` (0..1)."""
    flags = "01" if random.random() < sample else "00"  # noqa: S311 - sampling is no secret
    return f"00-{random.getrandbits(128) or 1:032x}-{random.getrandbits(64) or 1:016x}-{flags}"


def child_of(traceparent: str) -> str:
    """Name a new span in the same trace, with the same flag. The span itself is recorded later, as `own`."""
    return f"{traceparent[:36]}{random.getrandbits(64) or 1:016x}{traceparent[52:]}"


def valid(traceparent: str | None) -> bool:
    """Whether a string from outside is a usable version-00 traceparent (anything else gets a new trace)."""
    return traceparent is not None and _context(traceparent) is not None


def _context(traceparent: str) -> SpanContext | None:
    form = _FORM.fullmatch(traceparent)
    if not form:
        return None
    trace_id, span_id, flags = (int(digits, 16) for digits in form.groups())
    context = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return context if context.is_valid else None


class SpanFile(SpanExporter):
    """Appends spans to a file, one JSON object a line, each batch by a single write.

    O_APPEND and whole lines let processes share a folder (or a file), and a killed process can at worst leave
    one torn last line, which readers skip. OTLP is another exporter in this place.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._torn = False
        self.taken = 0
        self.lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write one batch; a full disk loses it, is counted, and is tried anew with the next."""
        self.taken += len(spans)
        try:
            lines = b"".join([_encode(_as_json(span)) + b"\n" for span in spans])
            data = b"\n" + lines if self._torn else lines
            self._torn = os.write(self._fd, data) < len(data)
        except (OSError, TypeError, ValueError):
            self._torn = True
        if self._torn:
            self.lost += len(spans)
            return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        os.close(self._fd)


def _as_json(span: ReadableSpan) -> dict[str, object]:
    context: SpanContext = span.context
    parent, resource = span.parent, span.resource.attributes
    return {
        "trace_id": f"{context.trace_id:032x}",
        "span_id": f"{context.span_id:016x}",
        "parent_id": f"{parent.span_id:016x}" if parent else None,
        "name": span.name,
        "kind": span.kind.name.lower(),
        "service": resource[SERVICE_NAME],
        "instance": resource[SERVICE_INSTANCE_ID],
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "attributes": dict(span.attributes or {}),
        "links": [
            {"trace_id": f"{x.context.trace_id:032x}", "span_id": f"{x.context.span_id:016x}"} for x in span.links
        ],
        "status": "ok" if span.status.is_ok else f"error: {span.status.description}",
    }


class Tracing:
    """What a process records its spans with; made by `configure`, closed at its end."""

    def __init__(self, service: str, instance: str, file: SpanFile | None, sample: float) -> None:
        self.sample = sample
        self._resource = Resource({SERVICE_NAME: service, SERVICE_INSTANCE_ID: instance})
        self._file = file
        self._processor = (
            BatchSpanProcessor(file, QUEUE_SPANS_MAX, EXPORT_DELAY_MS, EXPORT_BATCH_SPANS_MAX) if file else None
        )
        self._lock = threading.Lock()
        self._given = 0
        self._refused = 0

    @property
    def dropped(self) -> int:
        """Spans lost so far: the queue was full or the file could not be written."""
        return self._refused + (self._file.lost if self._file else 0)

    def sampled(self, traceparent: str | None) -> bool:
        """Whether a span in this trace would be written: the guard in front of every `record`."""
        return self._processor is not None and sampled(traceparent)

    def new_traceparent(self) -> str:
        """Start a trace, sampled by this process's ratio."""
        return new_traceparent(self.sample)

    def record(
        self,
        name: str,
        *,
        start_ns: int,
        end_ns: int,
        parent: str | None = None,
        own: str | None = None,
        kind: Kind = Kind.INTERNAL,
        attributes: Mapping[str, Attribute] | None = None,
        links: Sequence[str] = (),
        error: str | None = None,
    ) -> str:
        """Write one finished span and return its traceparent; never raises.

        Instants are Unix nanoseconds. `parent` is the traceparent of the span above, `own` this span's name when
        it was handed out before (`new_traceparent`, `child_of`). With neither (or an unusable parent) the span
        opens a trace of its own that is always recorded, as for one batch that serves many traces: give those as
        `links`; unusable ones are left out. An unsampled trace is left alone: `own` or `parent` comes back.
        """
        above = _context(parent) if parent else None
        own = own or (child_of(parent) if parent and above else new_traceparent(1.0))
        context = _context(own)
        if self._processor is None or context is None or not context.trace_flags.sampled:
            return own
        with self._lock:
            taken = self._file.taken if self._file else 0
            if self._given - taken >= QUEUE_SPANS_MAX:
                self._refused += 1
                return own
            self._given += 1
        # A finished span is a fact: building it directly costs a fifth of a tracer's start and end.
        span = ReadableSpan(
            name=name,
            context=context,
            parent=above,
            resource=self._resource,
            attributes=attributes,
            links=[Link(there) for there in map(_context, links) if there],
            kind=kind,
            status=Status(StatusCode.ERROR, error) if error else Status(),
            start_time=start_ns,
            end_time=end_ns,
        )
        self._processor.on_end(span)
        return own

    def flush(self) -> None:
        """Write what is queued now; blocks for one write, so not for the purchase path."""
        if self._processor:
            self._processor.force_flush()

    def close(self) -> None:
        """Flush and close the file; may be called twice; also runs at interpreter exit."""
        processor, self._processor = self._processor, None
        if processor:
            atexit.unregister(self.close)
            processor.shutdown()  # type: ignore[no-untyped-call]


def configure(service: str, instance: str, span_file: str, sample: float) -> Tracing:
    """Make the process's Tracing. `span_file` is a JSONL path, empty for no spans; `sample` is 0..1.

    Raises OSError with one sentence when the file cannot be opened.
    """
    if not span_file:
        return Tracing(service, instance, None, sample)
    try:
        file = SpanFile(Path(span_file))
    except OSError as error:
        raise OSError(f"cannot write spans to {span_file}: {error.strerror}; check STAMPEDE_SPAN_FILE") from error
    tracing = Tracing(service, instance, file, sample)
    atexit.register(tracing.close)
    return tracing

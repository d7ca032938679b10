"""The trace of one purchase as a table in the terminal, from the span files of all processes.

Reads only; a line that is torn or not a span is passed over.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from telemetry.names import PURCHASE_ID

BAR_WIDTH = 24


class SpanLink(msgspec.Struct, frozen=True):
    """Where a link of a span points."""

    trace_id: str
    span_id: str


class StoredSpan(msgspec.Struct, frozen=True):
    """One line of a span file; instants are Unix nanoseconds."""

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    service: str
    instance: str
    start_ns: int
    end_ns: int
    attributes: dict[str, str | int | float | bool]
    links: list[SpanLink]
    status: str


_decode = msgspec.json.Decoder(StoredSpan).decode


def _spans(folder: Path) -> Iterator[StoredSpan]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                try:
                    yield _decode(line)
                except msgspec.DecodeError:
                    continue


def spans_of_purchase(folder: Path, purchase_id: str) -> list[StoredSpan]:
    """All spans of the traces that name this purchase, and the batch spans that link to them, by start.

    `folder` holds `*.jsonl`; it is read twice, so that its size does not matter. Empty when nothing is found.
    """
    traces = {span.trace_id for span in _spans(folder) if span.attributes.get(PURCHASE_ID) == purchase_id}
    found = (s for s in _spans(folder) if s.trace_id in traces or any(x.trace_id in traces for x in s.links))
    return sorted(found, key=lambda span: (span.start_ns, -span.end_ns))


def _with_depth(spans: list[StoredSpan]) -> Iterator[tuple[int, StoredSpan]]:
    """Each span below its parent, brothers by start; a span whose parent was not written stands at the left."""
    known = {span.span_id for span in spans}
    below: dict[str | None, list[StoredSpan]] = {}
    for span in spans:
        below.setdefault(span.parent_id if span.parent_id in known else None, []).append(span)
    waiting = [(0, n, span) for n, span in enumerate(below.get(None, []))][::-1]
    while waiting:
        depth, n, span = waiting.pop()
        yield depth, span
        waiting += [(depth + 1, n, child) for child in below.pop(span.span_id, [])[::-1]]


def print_waterfall(spans: list[StoredSpan], console: Console) -> None:
    """Print one row a span: service, indented name, ms since the first start, ms it took, and a bar."""
    first, last = min(s.start_ns for s in spans), max(s.end_ns for s in spans)
    scale = BAR_WIDTH / max(last - first, 1)
    table = Table(
        "service",
        Column("span", no_wrap=True),
        Column("at ms", justify="right"),
        Column("ms", justify="right"),
        "",
        box=None,
    )
    for depth, span in _with_depth(spans):
        begin = int((span.start_ns - first) * scale)
        width = max(1, min(round((span.end_ns - span.start_ns) * scale), BAR_WIDTH - begin))
        name = "  " * depth + span.name + (f"  ({len(span.links)} linked)" if span.links else "")
        failed = span.status.startswith("error")
        table.add_row(
            span.instance,
            Text(name + (f"  {span.status}" if failed else ""), style="red" if failed else ""),
            f"{(span.start_ns - first) / 1e6:.1f}",
            f"{(span.end_ns - span.start_ns) / 1e6:.2f}",
            Text(" " * min(begin, BAR_WIDTH - 1) + "━" * width, style="red" if failed else "cyan"),
        )
    console.print(table)

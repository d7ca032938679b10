"""The lists of orders as SQL: newest first, page by page, and cheap at any number of rows.

Every query here is served by one of three narrow indexes (migration 0003); tests assert the plans. A page begins
behind the last row of the one before, never at a number of rows: page 1,000 costs what page 1 costs. Pure text and
arguments: it must not connect to anything.
"""

from datetime import datetime
from typing import Literal, NamedTuple, get_args

Status = Literal["reserved", "confirmed", "released", "rejected"]
STATUSES: tuple[Status, ...] = get_args(Status)
COLUMNS = (
    "purchase_id, buyer_id, product_id, quantity, status, reason, reservation_no, unit_price_minor, currency, "
    "payment_method, fingerprint, partition, source_offset, source_index, hold_until, stock_returned_at, refund, "
    "trace_id, version, created_at, updated_at"
)
_NEWEST_FIRST = "ORDER BY created_at DESC, purchase_id DESC LIMIT"


class After(NamedTuple):
    """The last row of the page before, both as read (`created_at` to the microsecond)."""

    created_at: datetime
    purchase_id: str


class Query(NamedTuple):
    """A query and its arguments: text with `$n`, and the arguments. A row has the names of `COLUMNS`."""

    text: str
    arguments: list[object]


def orders(
    limit: int,
    after: After | None = None,
    *,
    buyer_id: str | None = None,
    product_id: str | None = None,
    status: Status | None = None,
) -> Query:
    """All orders that match every filter given (None: any), newest first.

    Without a buyer each status is read from its own end of an index and the ends are merged: an index that holds no
    status would be read to its beginning for a status that is rare. With a buyer, that buyer's rows are read until the
    page is full.

    Args:
        limit: rows at most. Ask for one more than is shown to know whether there is a next page.
        after: the last row of the page before; None: the first page.
        buyer_id: only this buyer's.
        product_id: only of this product.
        status: only those that are in it now.
    """
    given = {"buyer_id": buyer_id, "product_id": product_id}
    if buyer_id is not None:
        given["status"] = status
    filters = {column: value for column, value in given.items() if value is not None}
    arguments: list[object] = [limit, *filters.values()]
    conditions = [f"{column} = ${n}" for n, column in enumerate(filters, 2)]
    if after is not None:
        conditions.append(f"(created_at, purchase_id) < (${len(arguments) + 1}, ${len(arguments) + 2})")
        arguments += after
    if buyer_id is not None:
        return Query(_newest(conditions), arguments)
    ends = [_newest([f"status = '{one}'", *conditions]) for one in STATUSES if status in (None, one)]
    if len(ends) == 1:
        return Query(ends[0], arguments)
    return Query(f"SELECT * FROM (({') UNION ALL ('.join(ends)})) AS ends {_NEWEST_FIRST} $1", arguments)  # noqa: S608


def _newest(conditions: list[str]) -> str:
    # Only names and `$n` of this module are put in: values travel as arguments.
    return f"SELECT {COLUMNS} FROM purchases WHERE {' AND '.join(conditions)} {_NEWEST_FIRST} $1"  # noqa: S608

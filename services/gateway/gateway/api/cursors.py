"""Cursors of lists: where a page ended, signed for their caller and query.

A cursor is good for the same caller, route and filters only; anybody else's, or a forged one, is refused as unreadable.
"""

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import Query
from itsdangerous import BadData, URLSafeSerializer

from gateway.http import problems
from gateway.read_side import order_queries
from gateway.read_side.order_queries import After
from gateway.read_side.postgres import Store
from gateway.read_side.purchase_state import Purchase
from service.problem_details import Problem, ProblemError

CURSOR_LENGTH_MAX = 200
PAGE_MAX = 100
PAGE_DEFAULT = 20
CursorInQuery = Annotated[str | None, Query(max_length=CURSOR_LENGTH_MAX, description="`next_cursor` of a page")]
LimitInQuery = Annotated[int, Query(ge=1, le=PAGE_MAX, description="how many at most")]


class Cursors:
    """Writes and reads cursors, signed with a key of the installation's own; `scope`: caller, route, each filter."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    async def page(
        self,
        store: Store,
        query: Callable[[int, After | None], order_queries.Query],
        limit: int,
        cursor: str | None,
        *scope: str,
    ) -> tuple[list[Purchase], str | None]:
        """At most `limit` rows of `query` behind the cursor (None: the first), and a cursor to the next page if any.

        Raises ProblemError, Unavailable.
        """
        after = None if cursor is None else self.read(cursor, *scope)
        rows = await store.page(query(limit + 1, after))
        following = self.write(rows[limit - 1][1], *scope) if len(rows) > limit else None
        return [row for row, _ in rows[:limit]], following

    def write(self, after: After, *scope: str) -> str:
        """A cursor to what comes behind `after`."""
        return self._serializer(scope).dumps((after.created_at.isoformat(), after.purchase_id))

    def read(self, cursor: str, *scope: str) -> After:
        """The place a cursor names. Raises ProblemError: it is not one that `write` made for this scope."""
        try:
            created_at, purchase_id = self._serializer(scope).loads(cursor)
        except BadData:
            detail = "The cursor is none of ours, or was made for another caller or other filters; begin without one."
            raise ProblemError(Problem(problems.INVALID_BODY, detail)) from None
        return After(datetime.fromisoformat(created_at), purchase_id)

    def _serializer(self, scope: tuple[str, ...]) -> URLSafeSerializer:
        return URLSafeSerializer(
            self._key,
            salt=msgspec.json.encode(scope),
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )

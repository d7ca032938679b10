"""POST /v1/purchases: the hot path, a bare ASGI callable in front of everything else.

Checks in this order: size and shape, identity, what is known already, limits, sale gate, log. 202 means that the log
has acknowledged. Must not allocate what an ordinary purchase does not need: spans are built for sampled purchases
only, problems only when the answer is no.
"""

import logging
import random
import time

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.admission import purchase_request
from gateway.admission.batcher import RequestBatcher
from gateway.admission.send import REPLAYED
from gateway.api import views
from gateway.auth import ids
from gateway.auth.authenticator import Authenticator
from gateway.auth.client_address import Network, client_address
from gateway.http import problems, requests
from gateway.http.asgi import read_body
from gateway.http.retry_after import key_reused
from gateway.metrics import Metrics
from gateway.read_side.lookup import Lookup
from gateway.read_side.postgres import NotMigrated, Unavailable
from gateway.read_side.purchase_state import Ordered, Purchase, Rejected, Reserved
from ratelimit.limiter import Subject
from service.problem_details import Problem
from stampede_schemas.identifiers import Position
from stampede_schemas.requests import PurchaseRequested
from stampede_schemas.topics import REQUESTS
from telemetry import names
from telemetry.traceparent import trace_id_of
from telemetry.tracing import Kind, Tracing, child_of, new_traceparent, valid

Reply = tuple[int, list[tuple[bytes, bytes]], bytes, str]  # status, headers, body, outcome
_log = logging.getLogger(__name__)
_JSON = (b"content-type", b"application/json")
_REPLAYED = (b"idempotency-replayed", b"true")


class _Trace:
    """The times and ids of one purchase's spans; built for sampled purchases only."""

    __slots__ = ("appended_ns", "links", "own", "sending", "start_ns")

    def __init__(self, outside: bytes | None) -> None:
        self.own = new_traceparent(1.0)
        self.sending = child_of(self.own)
        linked = outside.decode("latin-1") if outside else None
        self.links = (linked,) if linked is not None and valid(linked) else ()
        self.start_ns = self.appended_ns = time.time_ns()


class PurchaseEndpoint:
    """The ASGI callable. Any other request goes on to `rest`."""

    def __init__(
        self,
        rest: ASGIApp,
        identity: ids.IdentityKey,
        authenticator: Authenticator,
        lookup: Lookup,
        batcher: RequestBatcher,
        tracing: Tracing,
        metrics: Metrics,
        proxies: tuple[Network, ...] = (),
    ) -> None:
        self._proxies = proxies
        self._rest, self._identity, self._authenticator = rest, identity, authenticator
        self._lookup, self._batcher, self._tracing, self._metrics = lookup, batcher, tracing, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["path"] != views.PURCHASES_PATH or scope["method"] != "POST":
            await self._rest(scope, receive, send)
            return
        started = time.perf_counter()
        head = requests.purchase_head(scope["headers"])
        trace = _Trace(head.traceparent) if random.random() < self._tracing.sample else None  # noqa: S311
        try:
            result = await self._purchase(scope, head, receive, trace)
        except Exception:  # the outcome of the purchase is not known, and the answer must say so
            _log.exception("a purchase failed")
            result = Problem(problems.INTERNAL, "The gateway failed; send the same key again.")
        if result is None:
            return
        if isinstance(result, Problem):
            trace_id = trace_id_of(trace.own if trace else new_traceparent(0.0))
            reply: Reply = (
                result.kind.status,
                result.response_headers(),
                result.body(trace_id),
                result.kind.slug,
            )
        else:
            reply = result
        status, answer_headers, body, outcome = reply
        answer_headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": body})
        self._metrics.purchases[outcome].inc()
        self._metrics.duration.observe(time.perf_counter() - started)
        if trace is not None:
            self._record_server_span(trace, status)

    async def _purchase(
        self, scope: Scope, head: requests.PurchaseHead, receive: Receive, trace: _Trace | None
    ) -> Reply | Problem | None:
        if head.refused is not None:
            return head.refused
        raw = await read_body(receive)
        if raw is None or isinstance(raw, Problem):
            return raw
        if isinstance(head.key, Problem):
            return head.key
        body = purchase_request.purchase_body(raw)
        if isinstance(body, Problem):
            return body
        subject = await self._authenticator.subject(head.credentials)
        if isinstance(subject, Problem):
            return subject
        product_id = purchase_request.product_of(body)
        request = PurchaseRequested(
            purchase_id=self._identity.purchase_id(subject, "POST", views.PURCHASES_PATH, product_id, head.key),
            buyer_id=self._identity.buyer_id(subject),
            product_id=product_id,
            quantity=body.quantity,
            payment_method=purchase_request.payment_method(body),
            fingerprint=purchase_request.fingerprint(body),
            traceparent=trace.sending if trace else None,
        )
        peer = scope.get("client")
        forwarded = (value for name, value in scope["headers"] if name == b"x-forwarded-for")
        client = client_address(peer[0] if peer else None, forwarded, self._proxies)
        answer = await self._batcher.buy(request, Subject(request.buyer_id, client))
        if isinstance(answer, Problem):
            return answer
        if isinstance(answer, Position) and trace is not None:
            self._record_send_span(trace, request, answer)
        reply = await self._reply(request, head.wait_s, replayed=answer is REPLAYED)
        if not head.wait_s and head.responds_async and not isinstance(reply, Problem):
            reply[1].append((b"preference-applied", b"respond-async"))
        return reply

    async def _reply(self, request: PurchaseRequested, wait_s: int | None, *, replayed: bool) -> Reply | Problem:
        location = (b"location", views.location(request.purchase_id).encode())
        headers = [_JSON, location]
        if replayed:
            headers.append(_REPLAYED)
        if wait_s:
            headers.append((b"preference-applied", b"wait=%d" % wait_s))
            decided = await self._decided(request.purchase_id, wait_s)
            if isinstance(decided, Rejected | Reserved | Ordered) and decided.fingerprint not in (
                "",
                request.fingerprint,
            ):
                return key_reused()  # another gateway's send, with another body, came first
            match decided:
                case Rejected():
                    return _rejected(decided, tuple(headers[1:]))
                case Reserved() | Ordered(status="confirmed"):
                    return 201, headers, views.purchase(decided), decided.status
        body = views.pending(request.purchase_id, request.product_id)
        return 202, headers, body, "replayed" if replayed else "accepted"

    async def _decided(self, purchase_id: str, seconds: int) -> Purchase | None:
        try:
            return await self._lookup.change(purchase_id, 0, seconds)
        except (Unavailable, NotMigrated):
            return None  # it is in the log: that much is certain, and 202 says no more

    def _record_server_span(self, trace: _Trace, status: int) -> None:
        self._tracing.record(
            names.SPAN_PURCHASE,
            start_ns=trace.start_ns,
            end_ns=time.time_ns(),
            own=trace.own,
            kind=Kind.SERVER,
            attributes={names.HTTP_STATUS: status},
            links=trace.links,
            error="the gateway failed" if status >= 500 else None,
        )

    def _record_send_span(self, trace: _Trace, request: PurchaseRequested, position: Position) -> None:
        self._tracing.record(
            names.SPAN_SEND_REQUESTS,
            start_ns=trace.appended_ns,
            end_ns=time.time_ns(),
            parent=trace.own,
            own=trace.sending,
            kind=Kind.PRODUCER,
            attributes={
                names.PURCHASE_ID: request.purchase_id,
                names.PRODUCT_ID: request.product_id,
                names.MESSAGING_SYSTEM: "kafka",
                names.TOPIC: REQUESTS.name,
                names.PARTITION: position.partition,
                names.OFFSET: position.offset,
            },
        )


def _rejected(purchase: Rejected, headers: tuple[tuple[bytes, bytes], ...]) -> Problem:
    return Problem(
        problems.REJECTED,
        "The inventory has rejected this purchase.",
        extra={"purchase_id": purchase.purchase_id, "reason": purchase.reason},
        headers=headers,
    )

"""Properties of admission and of the projection."""

import json
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import purchase_request
from gateway.admission.purchase_request import PurchaseOrder
from gateway.http import requests
from gateway.read_side.projection import Projection
from service.problem_details import Problem
from stampede_schemas.decisions import AnyDecision, Rejected, Reserved
from stampede_schemas.identifiers import Position
from stampede_schemas.order_events import AnyOrderEvent
from tests.support.builders.gateway import (
    LAMP,
    answered_before,
    confirmed,
    given_back,
    listed,
    rejected,
    released,
    reserved,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(["product_id", "quantity", "payment_method", "price"])


@given(st.binary(max_size=64) | values.map(lambda value: json.dumps(value).encode()))
def test_no_body_raises(raw: bytes) -> None:
    """Whatever comes is a purchase or a problem."""
    assert isinstance(purchase_request.purchase_body(raw), PurchaseOrder | Problem)


@given(
    st.lists(st.tuples(members, st.sampled_from(["lamp", 1, "ok", 7, "\u0070"])), max_size=5),
    st.sampled_from(["plain", "escaped"]),
)
def test_a_body_is_taken_exactly_if_each_field_is_there_once_and_right(
    pairs: list[tuple[str, object]], spelling: str
) -> None:
    """Compared with a plain reading of the JSON, field by field; escapes change nothing."""

    def name(text: str) -> str:
        return "".join(f"\\u{ord(c):04x}" for c in text) if spelling == "escaped" else text

    raw = "{" + ",".join(f'"{name(key)}":{json.dumps(value)}' for key, value in pairs) + "}"
    plain = dict(pairs)
    right = (
        len(plain) == len(pairs)
        and set(plain) <= {"product_id", "quantity", "payment_method"}
        and isinstance(plain.get("product_id"), str)
        and isinstance(plain.get("quantity"), int)
        and isinstance(plain.get("payment_method", ""), str)
    )
    parsed = purchase_request.purchase_body(raw.encode())
    assert isinstance(parsed, PurchaseOrder) is right
    if isinstance(parsed, PurchaseOrder):
        assert (parsed.product_id, parsed.quantity) == (plain["product_id"], plain["quantity"])


@given(st.binary(max_size=300))
def test_a_key_is_short_printable_text_or_a_problem(value: bytes) -> None:
    """Nothing else comes out."""
    key = requests.idempotency_key({b"idempotency-key": value})
    if isinstance(key, str):
        assert 1 <= len(key) <= 255
        assert key.isascii()
        assert key.isprintable()


@given(st.permutations([confirmed(), given_back(), given_back(), confirmed()]))
def test_order_events_in_any_order_end_at_the_highest_version(events: Sequence[AnyOrderEvent]) -> None:
    """And the version never goes back on the way; the reservation may be seen before, between or after."""
    for place in range(len(events) + 1):
        projection = Projection()
        projection.fold(0, 0, [listed()])
        versions = []
        for number, event in enumerate([*events, None]):
            if number == place:
                projection.fold(0, 0, [reserved()])
            if event is not None:
                projection.fold_order(event)
            known = projection.purchase("buy")
            versions.append(known.version if known else 0)
        assert versions == sorted(versions)
        known = projection.purchase("buy")
        assert known is not None
        assert (known.status, known.version, known.fingerprint) == ("released", 4, "f")


decisions: st.SearchStrategy[AnyDecision] = st.one_of(
    st.builds(reserved, st.sampled_from("abc"), st.integers(0, 9)),
    st.builds(rejected, st.sampled_from("abc"), st.integers(0, 9)),
    st.builds(released, st.sampled_from("abc"), st.just(Position(0, 0, 0)), st.integers(0, 9)),
    st.builds(answered_before, st.sampled_from("abc"), st.just(Position(0, 0, 0))),
)


@given(st.lists(decisions, max_size=12))
def test_a_reservation_stays_else_the_first_rejection_and_duplicates_change_nothing(history: list[AnyDecision]) -> None:
    """Whatever follows; and availability is that of the last decision that carries one."""
    projection = Projection()
    projection.fold(0, 0, [listed(9)])
    outcomes: dict[str, str] = {}
    available = 9
    for offset, decision in enumerate(history, start=1):
        projection.fold(0, offset, [decision])
        available = getattr(decision, "available_after", available)
        if isinstance(decision, Reserved):
            outcomes[decision.purchase_id] = "reserved"
        elif isinstance(decision, Rejected) and decision.purchase_id not in outcomes:
            outcomes[decision.purchase_id] = "rejected"
    assert projection.products[LAMP].available == available
    for purchase_id, status in outcomes.items():
        known = projection.purchase(purchase_id)
        assert known is not None
        assert known.status == status

"""Payment reports: signed, fresh, strict. And cursors, which are signed too."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from gateway.api.app_factory import described
from gateway.api.cursors import Cursors
from gateway.api.webhook_signature import REPLAY_WINDOW_S, check_signature, command
from gateway.http.asgi import BodyLimit
from gateway.read_side.order_queries import After
from service.problem_details import Problem, ProblemError
from stampede_schemas.order_commands import PaymentReported, RefundReported
from tests.support.builders.webhook import signature

NOW = 1_700_000_000
OLD, NEW = "the-secret-of-last-month-of-the-provider", "the-secret-of-this-month-of-the-provider"
GOOD: dict[str, Any] = {
    "report_id": "evt-1",
    "purchase_id": "97ee-0f343b0931126a20f133d67c2b018a3b",
    "outcome": "approved",
    "amount_minor": 500,
    "currency": "EUR",
}
BODY = json.dumps(GOOD).encode()


def test_a_signature_is_good_for_its_body_its_secret_and_its_time() -> None:
    """Any valid secret will do, and any of several signatures."""
    good = signature(NEW, NOW, BODY)
    assert check_signature(good, BODY, [OLD, NEW], NOW) is None
    both = f"{signature(OLD, NOW, BODY)},{good.partition(',')[2]}"
    assert check_signature(both, BODY, [NEW], NOW) is None
    assert check_signature(good.upper().replace("T=", "t=").replace("V1=", "v1="), BODY, [NEW], NOW) is None
    for late in (-REPLAY_WINDOW_S, REPLAY_WINDOW_S):
        assert check_signature(good, BODY, [NEW], NOW + late) is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "t=1",
        "v1=00",
        f"t={NOW},v1=",
        f"t={NOW},v1=é",
        f"t={NOW},v1={'0' * 64}",
        f"t={'9' * 400},v1={'0' * 64}",
        f"t={NOW},t={NOW},{signature(NEW, NOW, BODY).partition(',')[2]}",
        signature(OLD, NOW, BODY),
        signature(NEW, NOW, BODY + b" "),
        signature(NEW, NOW, BODY).replace(str(NOW), str(NOW + 1)),
        signature(NEW, NOW - REPLAY_WINDOW_S - 1, BODY),
        signature(NEW, NOW + REPLAY_WINDOW_S + 1, BODY),
    ],
)
def test_any_other_signature_is_refused(header: str | None) -> None:
    """401, whatever it is."""
    refused = check_signature(header, BODY, [NEW], NOW)
    assert refused is not None
    assert refused.kind.slug == "signature-invalid"


def test_without_a_secret_nothing_is_signed() -> None:
    """An installation that takes no reports believes none, an empty secret least of all."""
    assert check_signature(signature("", NOW, BODY), BODY, [], NOW) is not None


def test_a_report_becomes_a_command() -> None:
    """Paid or not; or given back."""
    assert command(BODY) == PaymentReported(**GOOD, provider_ref="")
    refund = {name: value for name, value in GOOD.items() if name != "outcome"}
    told = command(json.dumps(GOOD | {"outcome": "refunded", "provider_ref": "r"}).encode())
    assert told == RefundReported(**refund, provider_ref="r")


@pytest.mark.parametrize(
    "changed",
    [
        {"outcome": "maybe"},
        {"amount_minor": -1},
        {"amount_minor": 1.5},
        {"amount_minor": "500"},
        {"currency": "eur"},
        {"currency": "EUR\n"},
        {"purchase_id": "x"},
        {"report_id": "a b"},
        {"report_id": "x" * 97},
        {"surprise": 1},
    ],
    ids=str,
)
def test_a_report_is_strict(changed: dict[str, Any]) -> None:
    """422 for anything that is not exactly a report."""
    told = command(json.dumps(GOOD | changed).encode())
    assert isinstance(told, Problem)
    assert told.kind.status == 422


@pytest.mark.parametrize(
    ("changed", "good"),
    [({}, True), ({"provider_ref": "r"}, True), ({"currency": "EURO"}, False), ({"report_id": "a b"}, False),
     ({"purchase_id": f"{GOOD['purchase_id']}0"}, False), ({"surprise": 1}, False), ({"outcome": "maybe"}, False)],
    ids=str,
)  # fmt: skip
def test_what_is_described_is_what_is_taken(changed: dict[str, Any], good: bool) -> None:
    """A report that the description allows is taken, and no other."""
    schema = described()["openapi.json"].openapi()["components"]["schemas"]["PaymentReport"]
    assert Draft202012Validator(schema).is_valid(GOOD | changed) is good
    assert isinstance(command(json.dumps(GOOD | changed).encode()), Problem) is not good


async def test_a_report_says_nothing_twice() -> None:
    """Which of two amounts would count? The body is refused before any route sees it."""
    app = BodyLimit(described()["openapi.json"])  # nothing is behind its routes
    twice = BODY[:-1] + b', "amount_minor": 1}'
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as provider:
        answer = await provider.post(
            "/v1/payments/webhook", content=twice, headers={"content-type": "application/json"}
        )
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/malformed-request")


def test_a_cursor_is_good_for_who_it_was_made_for() -> None:
    """It comes back to the microsecond; for another caller, route or filter, or changed anywhere, it is none."""
    cursors = Cursors(b"k" * 32)
    place = After(datetime(2026, 11, 21, 12, 0, 0, 123_457, tzinfo=UTC), "97ee-0")
    text = cursors.write(place, "ann", "/v1/purchases")
    assert cursors.read(text, "ann", "/v1/purchases") == place
    for scope in (
        ("bob", "/v1/purchases"),
        ("ann", "/other"),
        ("ann",),
        ("ann", "/v1/purchases", ""),
        ("an", "n/v1/purchases"),
    ):
        with pytest.raises(ProblemError):
            cursors.read(text, *scope)
    with pytest.raises(ProblemError):
        Cursors(b"other" * 8).read(text, "ann", "/v1/purchases")
    for at in range(len(text)):
        forged = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        try:
            assert cursors.read(forged, "ann", "/v1/purchases") == place, "only spare bits of base64 may change nothing"
            assert at == len(text) - 1
        except ProblemError:
            pass
    for nonsense in ("", "x", "%", "é", "A" * 500, "=" * 10):
        with pytest.raises(ProblemError):
            cursors.read(nonsense, "ann", "/v1/purchases")

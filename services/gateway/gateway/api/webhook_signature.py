"""Reports of payment providers: the signature over time and body, then the body itself. Pure.

`Stampede-Signature: t=<seconds since the epoch>,v1=<hex>`, where v1 is HMAC-SHA256 of `<t>.<body>`; several v1 may be
given, and several secrets be valid, while one takes over from another. A report older than the window is refused, one
that is repeated within it is harmless: its id makes it one.
"""

import hashlib
import hmac
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from gateway.api.models import ID
from gateway.http import problems
from service.problem_details import Problem
from stampede_schemas.identifiers import PRICE_MINOR_MAX
from stampede_schemas.order_commands import PaymentReported, RefundReported

SIGNATURE_HEADER = "Stampede-Signature"
REPLAY_WINDOW_S = 300
SIGNATURES_MAX = 4


class PaymentReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A report of a payment provider. `amount_minor`: all that was paid or given back; it must be the order's total."""

    report_id: Annotated[str, msgspec.Meta(pattern=r"^[!#-\[\]-~]{1,96}\Z", examples=["evt-1"])]
    purchase_id: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{4}-([0-9a-f]{2}-)?[0-9a-f]{32}\Z", examples=[ID])]
    outcome: Literal["approved", "declined", "refunded"]
    amount_minor: Annotated[int, msgspec.Meta(ge=0, le=PRICE_MINOR_MAX, examples=[1990])]
    currency: Annotated[str, msgspec.Meta(pattern=r"^[A-Z]{3}\Z", examples=["EUR"])]
    provider_ref: Annotated[str, msgspec.Meta(max_length=128)] = ""


_report = msgspec.json.Decoder(PaymentReport)


def check_signature(header: str | None, body: bytes, secrets: Sequence[str], now_s: float) -> Problem | None:
    """Refuse a body that nobody with a valid secret has signed within the window."""
    parts = [part.strip().partition("=") for part in (header or "").split(",")]
    times = [value for name, _, value in parts if name == "t"]
    given = [value for name, _, value in parts if name == "v1"][:SIGNATURES_MAX]
    if len(times) != 1 or not given or not (times[0].isascii() and times[0].isdigit() and len(times[0]) <= 12):
        return Problem(problems.SIGNATURE_INVALID, f"Send one {SIGNATURE_HEADER}: t=<seconds>,v1=<hex>.")
    signed = times[0].encode() + b"." + body
    macs = [hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest() for secret in secrets]
    # Every secret is tried against every signature: how long it takes tells nothing.
    matches = [hmac.compare_digest(mac.encode(), one.lower().encode()) for mac in macs for one in given]
    if not any(matches):
        return Problem(problems.SIGNATURE_INVALID, "The signature is not that of this body with any valid secret.")
    if abs(now_s - int(times[0])) > REPLAY_WINDOW_S:
        return Problem(problems.SIGNATURE_INVALID, f"The signature is more than {REPLAY_WINDOW_S} s from now.")
    return None


def command(body: bytes) -> PaymentReported | RefundReported | Problem:
    """The report as a command to the order-writer; that no field appears twice is checked of every body before."""
    try:
        report = _report.decode(body)
    except msgspec.ValidationError as error:
        return Problem(problems.INVALID_BODY, f"{error}.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Problem(problems.MALFORMED, "The body is not JSON.")
    fields = {name: getattr(report, name) for name in PaymentReport.__struct_fields__ if name != "outcome"}
    if report.outcome == "refunded":
        return RefundReported(**fields)
    return PaymentReported(**fields, outcome=report.outcome)

"""Ways to tamper with the evidence of a small sale: each is something that a broken system could have left behind."""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from replay.canaries import forms
from replay.evidence import Canaries, Catalogued, CommandRecord, Evidence, Letter, Payment, Record, State
from replay.journal import Attempt, Limits, Told
from stampede_schemas.codec import encode
from stampede_schemas.order_commands import AnyCommand
from tests.support.builders.replay import BEGAN_MS, change_row
from tests.support.builders.requests import LAMP

Tamper = Callable[[Evidence], object]


def lose(evidence: Evidence, offset: int) -> None:
    """A decisions record is lost; those after it move up, as in a log that never had it."""
    partition = evidence.partitions[0]
    del partition.decisions[offset]
    partition.decisions[:] = [record._replace(offset=n) for n, record in enumerate(partition.decisions)]


def forge(evidence: Evidence, *, source: int, load: str = "", **fields: Any) -> None:
    """A record that satisfies rule 2 is appended by somebody else."""
    partition = evidence.partitions[0]
    offset = len(partition.decisions)
    last = json.loads(partition.decisions[-1].value or b"")
    content = last | {"source_offset": source, "load": load or "e" * 32, "start": offset} | fields
    partition.decisions.append(Record(offset, BEGAN_MS + 100, json.dumps(content).encode()))


def letter(evidence: Evidence, change: Callable[[Letter], list[Letter]]) -> None:
    """Do something to the one dead letter."""
    assert evidence.letters is not None
    evidence.letters = change(evidence.letters[0])


def catalogue(evidence: Evidence, stock: int, available: int) -> None:
    """The product's row says something else."""
    assert evidence.database is not None
    products = evidence.database.products | {str(LAMP): Catalogued(stock, available, 0)}
    evidence.database = replace(evidence.database, products=products)


def progress(evidence: Evidence, **fields: Any) -> None:
    """The order-writer's position says something else."""
    assert evidence.database is not None
    applied = {0: evidence.database.applied[0]._replace(**fields)}
    evidence.database = replace(evidence.database, applied=applied)


def attempt(evidence: Evidence, number: int, **fields: Any) -> None:
    """A buyer was told something else."""
    assert evidence.journal is not None
    evidence.journal.attempts[number] = replace(evidence.journal.attempts[number], **fields)


def told(status: int, /, **body: object) -> Told:
    """An answer over HTTP."""
    return Told(status, json.dumps(body).encode())


def sends(status: int, at_ms: Iterable[int]) -> list[Told]:
    """Sends that took 5 ms each; accepted ones are of ann's first purchase."""
    return [told(status, purchase_id="a")._replace(sent_ms=at, answered_ms=at + 5) for at in at_ms]


def limited(evidence: Evidence, line: str, answers: list[Told], losses: int = 0, gateways: int = 1) -> None:
    """Ann sent that often, each time with a key of its own, under these limits."""
    assert evidence.journal is not None
    first = evidence.journal.attempts[0]
    ann = [replace(first, key=f"{n}", answers=[one]) for n, one in enumerate(answers)]
    if len(ann) > 1:  # one purchase each, as far as the other rules are concerned
        ann[1:] = [replace(one, purchase_id="", answers=[refusal(*one.answers)]) for one in ann[1:]]
    evidence.journal.attempts[:1] = ann
    evidence.journal.limits = Limits(line, gateways, losses)


def refusal(one: Told) -> Told:
    """What reached the edge was let through by the limits, too."""
    return one if one.status in (0, 429) else one._replace(status=409, body=b'{"type": "/problems/sold-out"}')


def unlist(evidence: Evidence) -> None:
    """A driver forgets that it was told of ann's purchase."""
    assert evidence.journal is not None
    evidence.journal.attempts[0] = Attempt("ann", "key-2", outcome="sold_out", answers=[told(409)], line=2)


def requests_end(evidence: Evidence, end: int) -> None:
    """`requests` lost its tail."""
    del evidence.partitions[0].requests[end:]


def swallow(evidence: Evidence, offset: int) -> None:
    """A hole in `requests`."""
    del evidence.partitions[0].requests[offset]


def state(evidence: Evidence, source_offset: int, sha256: str) -> None:
    """A worker says something else of its table."""
    evidence.states = [State(0, source_offset, sha256)]


def hold(evidence: Evidence, purchase_id: str, version: int) -> None:
    """The row is that of a hold that began a moment ago."""
    assert evidence.database is not None
    now = evidence.database.now_ms
    change_row(evidence, purchase_id, status="reserved", version=version, created_at_ms=now, hold_until_ms=now + 60_000)


def beware(evidence: Evidence, *words: str, text: bytes = b"") -> None:
    """These words must be nowhere, nor in this text."""
    evidence.canaries = Canaries([forms(word) for word in words], [("gateway.log", text)])


def commanded(evidence: Evidence, *commands: AnyCommand) -> None:
    """Operators and buyers asked for something else."""
    evidence.commands = [CommandRecord(0, n, BEGAN_MS, encode(command)) for n, command in enumerate(commands)]


def pay(evidence: Evidence, event: str, purchase_id: str, amount_minor: int) -> Evidence:
    """The provider's books say one thing more."""
    assert evidence.payments is not None
    line = len(evidence.payments) + 1
    evidence.payments = [*evidence.payments, Payment(line, BEGAN_MS, event, purchase_id, amount_minor, "EUR")]
    return evidence


def unpay(evidence: Evidence, event: str, purchase_id: str) -> None:
    """The provider did not do that."""
    assert evidence.payments is not None
    evidence.payments = [fact for fact in evidence.payments if (fact.event, fact.purchase_id) != (event, purchase_id)]


def decisions_at(evidence: Evidence, offset: int) -> list[dict[str, Any]]:
    """What one record decided."""
    decisions: list[dict[str, Any]] = json.loads(evidence.partitions[0].decisions[offset].value or b"")["decisions"]
    return decisions

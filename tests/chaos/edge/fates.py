"""What the log, and the rows at the end, say of the purchases of a round: read once all is quiet. Pure."""

from collections import defaultdict
from collections.abc import Collection

from gateway.auth.ids import IdentityKey, Subject
from replay.contract import Answer, PurchaseRequest, read_request, split
from replay.evidence import Evidence, Partition
from stampede_schemas.identifiers import ProductId
from tests.chaos.edge.account import Account, Fate, Send, Stocked, readable

OUTCOMES = {"Reserved": "reserved", "Rejected": "rejected"}


def told_apart(product_id: str, quantity: int, method: str) -> str:
    """Equal for bodies that say the same."""
    return f"{quantity} {product_id}, {method}"


def purchase_of(identity: IdentityKey, send: Send, header: str) -> str:
    """The id under which the log holds what was sent with this Idempotency-Key."""
    who = Subject("header", send.buyer)
    return identity.purchase_id(who, "POST", "/v1/purchases", ProductId(send.product_id), header)


def tell(account: Account, evidence: Evidence, ahead_ms: float) -> None:
    """Fill in fates and stock; the broker's clock is `ahead_ms` before the machine's monotonic one."""
    wanted, products = set(account.ids.values()), {send.product_id for send in account.sends}
    for partition in evidence.partitions.values():
        for purchase_id, times in _appended(partition, wanted, ahead_ms).items():
            account.fates[purchase_id] = Fate(times)
        for record in partition.counting:
            asked_ms, decided_ms = record.appended_at_ms - ahead_ms, record.at_ms - ahead_ms
            for answer in record.answers or ():
                if answer.product_id in products and answer.available_after is not None:
                    left = Stocked(asked_ms, readable(asked_ms, decided_ms), answer.available_after)
                    account.stock.setdefault(answer.product_id, []).append(left)
                if answer.type in OUTCOMES and (fate := account.fates.get(answer.purchase_id)) and not fate.outcome:
                    account.fates[answer.purchase_id] = _decided(fate, answer, decided_ms)
    rows = evidence.database.rows if evidence.database else {}
    for purchase_id in wanted & rows.keys() & account.fates.keys():
        row = rows[purchase_id]
        account.fates[purchase_id] = account.fates[purchase_id]._replace(status=row.status, version=row.version)


def _appended(partition: Partition, wanted: Collection[str], ahead_ms: float) -> dict[str, list[float]]:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for record in partition.requests:
        requests = split(record.value)
        for raw in () if isinstance(requests, str) else requests:
            request = read_request(raw)
            if isinstance(request, PurchaseRequest) and request.purchase_id in wanted:
                found[request.purchase_id].append(record.at_ms - ahead_ms)
    return found


def _decided(fate: Fate, answer: Answer, at_ms: float) -> Fate:
    body = told_apart(answer.product_id, answer.quantity, answer.payment_method)
    return fate._replace(decided_ms=at_ms, body=body, outcome=OUTCOMES[answer.type], reason=answer.reason)

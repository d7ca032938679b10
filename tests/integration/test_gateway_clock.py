"""The gate's clock: what a gateway takes for the broker's time when it has just begun to read."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.builders.gateway import GatewayProcess
from tests.support.processes.sale import Sale, buy

QUIET_S = 5.0
NOWHERE = "postgresql://stampede@127.0.0.1:1/stampede"


def test_a_gateway_that_starts_amid_quiet_opens_the_sale_in_time(sale: Sale, tmp_path: Path) -> None:
    """Without Postgres it reads the log from its beginning. The age of what it reads says nothing about now."""
    opens_at = datetime.now(UTC) + timedelta(seconds=QUIET_S)
    tea = sale.product(3, opens_at=opens_at.isoformat())
    time.sleep(QUIET_S)  # the quiet is the point: no record is younger than this
    late = GatewayProcess(sale.stack, tmp_path, STAMPEDE_POSTGRES=NOWHERE)
    try:
        late.await_ready()
        with sale.buyer(gateway=late) as ann:
            answer = buy(ann, tea)
        assert answer.status_code == 202, answer.text
    finally:
        late.close()

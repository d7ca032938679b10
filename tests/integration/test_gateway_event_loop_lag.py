"""How late the event loop is, measured while it stalls."""

import asyncio
import time

from prometheus_client import CollectorRegistry

from gateway.http.load_shedding import LAG_S_MAX, EventLoopLag
from gateway.metrics import Metrics


async def test_one_stall_is_no_overload_but_a_row_of_them_is() -> None:
    """The average of the last second counts, and it recovers."""
    lag = EventLoopLag(Metrics(CollectorRegistry()).loop_lag)
    watching = asyncio.create_task(lag.run())
    try:
        await asyncio.sleep(0.05)
        time.sleep(0.6)  # noqa: ASYNC251 - to be late is the point
        await asyncio.sleep(0.01)
        assert 0 < lag.seconds < LAG_S_MAX
        for _ in range(10):
            await asyncio.sleep(0.02)
            time.sleep(0.5)  # noqa: ASYNC251
        assert lag.seconds > LAG_S_MAX
        async with asyncio.timeout(20):
            while lag.seconds > LAG_S_MAX:  # noqa: ASYNC110 - it is looked at, it tells nobody
                await asyncio.sleep(0.05)
    finally:
        watching.cancel()

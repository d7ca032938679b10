"""The circuit breaker: when calls to the payment provider may begin."""

from order_writer.payments.circuit_breaker import FAILURES_MAX, OPEN_S, OPEN_S_MAX, PROBES_MAX, Breaker


def opened(now_s: float = 0.0) -> Breaker:
    """One that has just opened."""
    breaker = Breaker()
    for _ in range(FAILURES_MAX):
        breaker.failed(now_s)
    return breaker


def test_only_failures_in_a_row_open_it() -> None:
    """An answer between them says that the provider lives."""
    breaker = Breaker()
    for _ in range(5 * FAILURES_MAX):
        for _ in range(FAILURES_MAX - 1):
            assert not breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.room(100, 0.0) == 100
    assert [breaker.failed(0.0) for _ in range(FAILURES_MAX)] == [False] * (FAILURES_MAX - 1) + [True]
    assert breaker.room(100, 0.0) == 0


def test_after_a_while_a_few_probes_may_begin_and_no_more() -> None:
    """As many as are allowed, however often one asks."""
    breaker = opened()
    assert breaker.room(100, OPEN_S / 2) == 0
    assert breaker.room(100, OPEN_S) == PROBES_MAX
    for left in range(PROBES_MAX - 1, -1, -1):
        breaker.began()
        assert breaker.room(100, OPEN_S) == left


def test_a_probe_that_is_answered_closes_it() -> None:
    """All calls may begin again, and it takes as many failures as before to open it."""
    breaker = opened()
    breaker.room(1, OPEN_S)
    breaker.succeeded()
    assert breaker.room(100, OPEN_S) == 100
    assert not breaker.failed(OPEN_S)


def test_each_failed_probe_doubles_the_wait() -> None:
    """Up to half a minute: a dead provider hears two calls in that time."""
    breaker, now_s, wait_s = opened(), 0.0, OPEN_S
    for _ in range(10):
        assert breaker.room(1, now_s + wait_s - 0.001) == 0
        now_s += wait_s
        assert breaker.room(1, now_s) == 1
        assert breaker.failed(now_s)
        wait_s = min(wait_s * 2, OPEN_S_MAX)


def test_calls_of_before_it_opened_change_nothing() -> None:
    """Their failures do not prolong the wait, their late answers do not end it."""
    breaker = opened()
    assert not breaker.failed(OPEN_S / 2)
    breaker.succeeded()
    assert breaker.room(100, OPEN_S / 2) == 0
    assert breaker.room(100, OPEN_S) == PROBES_MAX

"""The broker's clock, as a gateway knows it."""

from gateway.read_side.broker_clock import BrokerClock


def test_the_brokers_clock_is_never_guessed_ahead() -> None:
    """Of all delays seen the smallest counts, for a minute; before anything was seen nothing is known."""
    now = [100.0]
    clock = BrokerClock(lambda: now[0])
    assert clock.now_ms() is None
    clock.saw(99_000, 0.0)
    clock.saw(99_900, 0.0)
    clock.saw(99_500, 0.0)
    now[0] = 110.0
    assert clock.now_ms() == 109_900
    now[0] = 161.0
    clock.saw(160_000, 0.0)
    assert clock.now_ms() == 160_000


def test_an_old_record_says_nothing_about_now() -> None:
    """Neither one that was read late nor one whose acknowledgement lay there while this process was frozen."""
    clock = BrokerClock(lambda: 100.0)
    clock.saw(46_000, 54.0)
    assert clock.now_ms() is None
    clock.saw(99_900, 0.5)
    assert clock.now_ms() == 99_900

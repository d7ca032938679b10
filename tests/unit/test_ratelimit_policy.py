"""How policies are read from a setting, and under which names callers are counted."""

import pytest

from ratelimit.policy import Algorithm, Policy, network_of, parse_policies


def test_the_documented_line_is_read() -> None:
    """Scope, algorithm, quota, window and burst; the second policy of a scope gets a name of its own."""
    assert parse_policies(" user:token_bucket:5/s/10, user:sliding_window:60/min,address:token_bucket:200/10s,") == (
        Policy("user", "user", Algorithm.TOKEN_BUCKET, 5, 1_000_000, 10),
        Policy("user-2", "user", Algorithm.SLIDING_WINDOW, 60, 60_000_000, 60),
        Policy("address", "address", Algorithm.TOKEN_BUCKET, 200, 10_000_000, 200),
    )
    assert parse_policies("") == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("users:token_bucket:5/s", "scope 'users' is none of user, address"),
        ("user:leaky:5/s", "algorithm 'leaky' is none of token_bucket, sliding_window"),
        ("user:token_bucket:5", "'5' is not like 5/s"),
        ("user:token_bucket:5/w", "'5/w' is not like 5/s"),
        ("user:token_bucket:-5/s", "'-5/s' is not like 5/s"),
        ("user:token_bucket:0/s", "must be at least 1"),
        ("user:token_bucket:5/0s", "must be at least 1"),
        ("user:sliding_window:5/s/10", "has no burst"),
        ("user:sliding_window:1001/s", "use token_bucket"),
        ("user:token_bucket:5/d/999999999", "too large"),
        ("user:token_bucket:5/s,user:token_bucket:5/s", "there twice"),
        (",".join(f"user:token_bucket:{n}/s" for n in range(1, 10)), "more than 8"),
    ],
)
def test_a_faulty_line_is_refused_in_one_sentence(line: str, said: str) -> None:
    """The sentence names the faulty part."""
    with pytest.raises(ValueError, match=said):
        parse_policies(line)


@pytest.mark.parametrize("line", ["user:token_bucket:5/s", "user:token_bucket:5/s/1", "user:sliding_window:7/min"])
@pytest.mark.parametrize("gateways", [1, 2, 3, 50])
def test_shares_add_up_to_the_rate(line: str, gateways: int) -> None:
    """All gateways' shares together have at most the policy's rate, and at most one capacity too many each."""
    (policy,) = parse_policies(line)
    share = policy.share(gateways)
    assert gateways * share.quota * policy.window_us <= policy.quota * share.window_us
    assert gateways * share.burst <= policy.burst + gateways - 1
    assert share.burst >= 1


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("testclient", "unknown"),
        ("", "unknown"),
    ],
)
def test_addresses_count_by_who_holds_them(address: str, name: str) -> None:
    """IPv4 whole, IPv6 by its /64, mapped IPv4 as IPv4, and everything else together."""
    assert network_of(address) == name

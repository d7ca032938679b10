"""Whose address counts: nobody can choose another one, except who is told to be believed."""

import pytest

from gateway.auth.client_address import client_address, parse_proxies

OURS = parse_proxies("10.0.0.0/8, 192.0.2.1,fd00::/8")


def asked(peer: str | None, *forwarded: str) -> str | None:
    """The client of a request with these X-Forwarded-For headers."""
    return client_address(peer, [each.encode("latin-1") for each in forwarded], OURS)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", (), "203.0.113.9"),
        ("203.0.113.9", ("198.51.100.1",), "203.0.113.9"),  # a stranger's header
        ("10.1.2.3", ("198.51.100.1",), "198.51.100.1"),
        ("::ffff:10.1.2.3", ("198.51.100.1",), "198.51.100.1"),
        ("fd00::1", ("2001:db8::7",), "2001:db8::7"),
        ("10.1.2.3", ("1.2.3.4, 198.51.100.1",), "198.51.100.1"),  # the client made up the first
        ("10.1.2.3", ("1.2.3.4, 198.51.100.1, 192.0.2.1",), "198.51.100.1"),  # two proxies of ours
        ("10.1.2.3", ("1.2.3.4", "198.51.100.1"), "198.51.100.1"),  # each proxy wrote a header of its own
        ("10.1.2.3", ("10.9.9.9, 10.8.8.8",), "10.9.9.9"),  # somebody inside
        ("10.1.2.3", (), "10.1.2.3"),
        ("10.1.2.3", ("",), "10.1.2.3"),
        ("10.1.2.3", ("198.51.100.1, unknown",), "10.1.2.3"),
        ("10.1.2.3", ("198.51.100.1, unknown, 192.0.2.1",), "192.0.2.1"),
        ("10.1.2.3", ("\xff\r\n, '; --",), "10.1.2.3"),
        ("10.1.2.3", (",".join(["10.0.0.1"] * 100_000),), "10.0.0.1"),
        (None, ("198.51.100.1",), None),
        ("testclient", ("198.51.100.1",), "testclient"),
    ],
)
def test_only_our_proxies_are_believed(peer: str | None, forwarded: tuple[str, ...], client: str | None) -> None:
    """From the end of the list back to the first that is not ours."""
    assert asked(peer, *forwarded) == client


def test_without_proxies_the_header_means_nothing() -> None:
    """That is the default."""
    assert client_address("10.1.2.3", [b"198.51.100.1"], parse_proxies("")) == "10.1.2.3"


@pytest.mark.parametrize("text", ["10.0.0.0/99", "proxy.example", "10.0.0.1/8"])
def test_a_faulty_list_is_refused(text: str) -> None:
    """The sentence names the faulty part."""
    with pytest.raises(ValueError, match="is no network or address"):
        parse_proxies(f"192.0.2.1,{text}")

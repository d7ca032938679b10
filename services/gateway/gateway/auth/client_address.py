"""The client address of a request: the connection's, or the one that a trusted proxy forwards.

Pure. X-Forwarded-For is read from its end, where our own proxies write; what stands before the first address that is
not one of them was written by a stranger, and means nothing.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

HOPS_MAX = 16
Network = IPv4Network | IPv6Network


def parse_proxies(text: str) -> tuple[Network, ...]:
    """Networks and single addresses, comma-separated. Raises ValueError naming the faulty part."""
    found: list[Network] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ip_network(part))
        except ValueError:
            raise ValueError(f"{part!r} is no network or address, like 10.0.0.0/8, 192.0.2.1 or fd00::/8") from None
    return tuple(found)


def client_address(peer: str | None, forwarded: Iterable[bytes], proxies: tuple[Network, ...]) -> str | None:
    """The address of the client of a connection from `peer`. `forwarded`: the values of X-Forwarded-For, in order."""
    if not proxies or peer is None or not _trusted(_read(peer), proxies):
        return peer
    hops = b",".join(forwarded).decode("latin-1")
    client = peer
    for hop in reversed(hops.split(",")[-HOPS_MAX:]):
        address = _read(hop.strip())
        if address is None:
            break  # a proxy of ours wrote no address: nobody is known beyond it
        client = str(address)
        if not _trusted(address, proxies):
            break
    return client


def _read(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def _trusted(address: IPv4Address | IPv6Address | None, proxies: tuple[Network, ...]) -> bool:
    return address is not None and any(address in network for network in proxies)

"""Whose address counts where a proxy stands in front."""

import pytest
from starlette.datastructures import Headers

from workers.panel.proxies import Proxies

PROXIES = Proxies(["127.0.0.1", "10.0.0.0/8", "2001:db8:ffff::/48"])


def seen(peer: str, told: str) -> str:
    """Return the address of the client."""
    return PROXIES.caller(peer, "http", Headers({"x-forwarded-for": told})).address


@pytest.mark.parametrize("peer", ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.1.2.3", "2001:db8:ffff::1"])
def test_a_known_proxy_is_believed(peer: str) -> None:
    """Also where it comes by a socket for both families."""
    caller = PROXIES.caller(peer, "http", Headers({"x-forwarded-for": "192.0.2.7", "x-forwarded-proto": "https"}))
    assert ("192.0.2.7", True) == (caller.address, caller.secure)


@pytest.mark.parametrize("peer", ["127.0.0.2", "::ffff:127.0.0.2", "::1", "", "unix"])
def test_nobody_else_is(peer: str) -> None:
    """Their own address counts."""
    assert peer == seen(peer, "192.0.2.7")


@pytest.mark.parametrize(
    ("told", "address"),
    [
        ("192.0.2.7:4711", "192.0.2.7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("192.0.2.9, 192.0.2.7:4711, 10.0.0.2:80", "192.0.2.7"),
        ("192.0.2.9, ::ffff:10.0.0.2", "192.0.2.9"),
        ("192.0.2.9, unknown", "127.0.0.1"),
        ("192.0.2.9, _hidden:1", "127.0.0.1"),
        ("192.0.2.9, ", "127.0.0.1"),
        ("192.0.2.9, [", "127.0.0.1"),
    ],
)
def test_as_proxies_write_it(told: str, address: str) -> None:
    """With ports and without; what nobody can read ends the way back."""
    assert address == seen("127.0.0.1", told)

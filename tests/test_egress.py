"""Which addresses the hub itself may make requests to."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from machinehub.egress.addresses import EgressError, is_public, read_target
from machinehub.egress.client import Egress

INSIDE = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "198.18.0.1",
    "::",
    "::1",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "fec0::1",
    "3fff::1",
    "2606:4700::5efe:7f00:1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:7f00:1::1",
]
OUTSIDE = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"]


@pytest.mark.core
def test_only_the_public_internet() -> None:
    assert [text for text in INSIDE if is_public(ip_address(text))] == []
    assert [text for text in OUTSIDE if not is_public(ip_address(text))] == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a.example",
        "https://",
        "https:///x",
        "https://u@a.example",
        "https://a:b@c.example",
        "file:///etc/passwd",
        "//a.example",
        "https://[::1",
        "https://a.example:99999",
        "h\nttps://a",
    ],
)
@pytest.mark.core
def test_what_is_no_target(url: str) -> None:
    with pytest.raises(EgressError):
        read_target(url)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::ffff:7f00:1]"]
)
async def test_an_address_inside_in_any_spelling_is_refused(host: str) -> None:
    egress = Egress([])
    with pytest.raises(EgressError) as error:
        await egress.get(f"https://{host}:1/", owner="", bytes_max=10, within_s=5)
    assert error.value.code == "egress_refused"


async def test_a_host_with_one_address_inside_is_refused() -> None:
    """Whichever of them a connection would have taken."""

    async def resolve(_host: str, _port: int) -> list[str]:
        return ["1.1.1.1", "10.0.0.1"]

    with pytest.raises(EgressError, match="public internet"):
        await Egress([], resolve=resolve).get(
            "https://a.example/", owner="", bytes_max=10, within_s=5
        )


async def test_without_encryption_only_where_the_operator_says() -> None:
    egress = Egress(["127.0.0.0/8"])
    with pytest.raises(EgressError, match="failed"):
        await egress.get("http://127.0.0.1:1/", owner="", bytes_max=10, within_s=5)

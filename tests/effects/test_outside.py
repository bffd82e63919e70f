"""A stranger's requests: where they may go, what may come back, how long it may take. Row 21 of
docs/security.md.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from machinehub.effects.retries import retry_after_s
from machinehub.egress.addresses import EgressError, Unreachable
from machinehub.egress.client import Egress, Outgoing
from machinehub.egress.rules import (
    EgressRules,
    check_allowed,
    check_request,
    is_allowed,
    target_of,
)
from machinehub.errors import BadRequest
from sandbox.protocol.effects import read_request
from tests.effects.world import world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

LOOPBACK = ["127.0.0.0/8"]
ALL = EgressRules(allow=["*"])


_OPEN: list[Egress] = []


def opened(networks: list[str], **more: Any) -> Egress:
    """Closed when the test ends."""
    _OPEN.append(Egress(networks, **more))
    return _OPEN[-1]


@pytest.fixture(autouse=True)
async def _closing() -> AsyncIterator[None]:
    yield
    while _OPEN:
        await _OPEN.pop().close()


async def fetch(egress: Egress, url: str, **more: Any) -> Any:
    rules = more.pop("rules", ALL)
    asked = Outgoing(more.pop("method", "GET"), url, **more)
    return await egress.send(
        asked, check=lambda method, target: check_request(rules, [["*"]], method, target)
    )


async def refused(egress: Egress, url: str, **more: Any) -> EgressError:
    with pytest.raises(EgressError) as error:
        await fetch(egress, url, **more)
    return error.value


# --- where ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001",
        "0", "0.0.0.0", "localhost", "LOCALHOST.", "localhost.localdomain", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[64:ff9b::a9fe:a9fe]",
        "[2002:7f00:1::]", "[fe80::1]", "[fc00::1]", "[fd00:ec2::254]", "[ff02::1]",
        "169.254.169.254", "2852039166", "0xa9fea9fe", "10.0.0.1", "10.1", "172.16.0.1", "192.168.1.1",
        "192.0.0.8", "192.0.0.192", "[2002:c000:c0::1]", "192.88.99.1", "168.63.129.16", "[::ffff:168.63.129.16]",
        "100.64.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "①②⑦.⓪.⓪.①", "127。0。0。1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_what_is_inside_is_refused_in_every_spelling(scheme: str, host: str) -> None:
    """Whatever the rules allow, and before anything is connected to."""
    error = await refused(opened([]), f"{scheme}://{host}:9/")
    assert error.code == "egress_refused" or "leads nowhere" in error.detail
    assert "Connect" not in error.detail


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a.example/", "gopher://a.example/", "data:text/plain,x", "unix:///run/x",
        "javascript:1", "ws://a.example/", "//a.example/", "a.example", "", "http:", "http://", "https:///x",
        "http://u@a.example/", "http://u:p@a.example/", "http://a.example@127.0.0.1/", "http://a.example:x/",
        "http://a.example:99999/", "http://a.example:-1/", "http://[::1", "http://a b.example/",
        "http://a.example\r\nX: y/", "http://a.example/\0", "http://" + "a" * 254 + ".example/",
        "http://" + ".".join(["a" * 63] * 5) + "/",
    ],
)  # fmt: skip
async def test_what_is_no_url_of_the_world(url: str) -> None:
    assert (await refused(opened([]), url)).code == "egress_refused"


def resolving(*answers: Sequence[str]) -> Any:
    """A test resolver: each lookup gets the next answer, the last one again and again."""
    waiting = list(answers)
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        return list(waiting.pop(0) if len(waiting) > 1 else waiting[0])

    resolve.asked = asked  # type: ignore[attr-defined]
    return resolve


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["93.184.216.34", "127.0.0.1"],
        ["127.0.0.1", "93.184.216.34"],
        ["93.184.216.34", "::1"],
        ["93.184.216.34", "64:ff9b::7f00:1"],
        ["::ffff:10.0.0.1"],
    ],
)
async def test_one_address_inside_is_one_too_many(addresses: list[str]) -> None:
    error = await refused(opened([], resolve=resolving(addresses)), "https://a.example/")
    assert error.code == "egress_refused"


async def test_a_name_that_leads_elsewhere_the_next_moment() -> None:
    """Rebinding: what was checked is what is connected to; there is no second lookup."""
    async with world() as there:
        resolve = resolving(["127.0.0.1"], ["10.0.0.1"])
        egress = opened(LOOPBACK, resolve=resolve)
        answer = await fetch(egress, f"http://rebinding.example:{there.port}/echo")
        assert answer.status == 200
        assert resolve.asked == ["rebinding.example"]
        assert there.seen[0].header("host") == f"rebinding.example:{there.port}"
        # A connection that is kept stays where it was; a new one is checked anew.
        await egress.close()
        error = await refused(egress, f"http://rebinding.example:{there.port}/echo")
        assert error.code == "egress_refused"
        assert len(there.seen) == 1


async def test_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    error = await refused(opened([], resolve=resolving([])), "https://a.example/")
    assert isinstance(error, Unreachable)


@pytest.mark.parametrize(
    "where",
    ["http:~~10.0.0.1~", "http:~~169.254.169.254~latest", "http:~~[::1]~", "http:~~2130706434:1~"],
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_inward_is_refused(status: int, where: str) -> None:
    async with world() as there:
        error = await refused(opened(["127.0.0.1/32"]), f"{there.url}/redirect/{status}/{where}")
        assert error.code == "egress_refused"
        assert len(there.seen) == 1


async def test_a_redirect_is_held_against_the_rules() -> None:
    async with world() as there:
        rules = EgressRules(allow=[f"{there.url}/redirect/*"])
        error = await refused(opened(LOOPBACK), f"{there.url}/redirect/302/~echo", rules=rules)
        assert (error.code, len(there.seen)) == ("egress_refused", 1)
        assert (await refused(opened(LOOPBACK), f"{there.url}/redirect/302/file:~~~etc")).code == "egress_refused"  # fmt: skip


async def test_redirects_are_followed_as_fetch_does() -> None:
    async with world() as there:
        egress = opened(LOOPBACK)
        answer = await fetch(egress, f"{there.url}/redirect/303/~echo", method="POST", body=b"x")
        assert (there.seen[1].method, there.seen[1].body) == ("GET", b"")
        assert (answer.status, answer.redirected, answer.url) == (200, True, f"{there.url}/echo")
        await fetch(egress, f"{there.url}/redirect/307/~echo", method="POST", body=b"x")
        assert (there.seen[3].method, there.seen[3].body) == ("POST", b"x")
        manual = await fetch(egress, f"{there.url}/redirect/302/~echo", redirect="manual")
        assert (manual.status, manual.redirected) == (302, False)
        error = await refused(egress, f"{there.url}/redirect/302/~echo", redirect="error")
        assert error.code == "egress_failed"
        error = await refused(egress, f"{there.url}/loop", redirects_max=3)
        assert "3 redirects" in error.detail


async def test_what_lets_somebody_in_stays_at_its_origin() -> None:
    async with world() as one, world() as two:
        headers = [("Authorization", "Bearer x"), ("Cookie", "a=b"), ("X-Other", "y")]
        where = two.url.replace("/", "~")
        await fetch(opened(LOOPBACK), f"{one.url}/redirect/302/{where}~echo", headers=headers)
        assert one.seen[0].header("authorization") == "Bearer x"
        assert two.seen[0].header("authorization") is two.seen[0].header("cookie") is None
        assert two.seen[0].header("x-other") == "y"
        await fetch(opened(LOOPBACK), f"{one.url}/redirect/302/~echo", headers=headers)
        assert one.seen[2].header("authorization") == "Bearer x"


@pytest.mark.core
@pytest.mark.parametrize(
    ("pattern", "url", "fits"),
    [
        ("api.example.com", "https://api.example.com/x", True),
        ("api.example.com", "http://api.example.com:81/", True),
        ("API.example.com", "https://api.EXAMPLE.com./", True),
        ("api.example.com", "https://xapi.example.com/", False),
        ("api.example.com", "https://api.example.com.evil.example/", False),
        ("api.example.com:8443", "https://api.example.com:8443/", True),
        ("api.example.com:8443", "https://api.example.com/", False),
        ("*.example.com", "https://a.b.example.com/", True),
        ("*.example.com", "https://example.com/", False),
        ("*.example.com", "https://evilexample.com/", False),
        ("https://h.example/x/*", "https://h.example/x/y?z=1", True),
        ("https://h.example/x/*", "https://h.example/xy", False),
        ("https://h.example/x/*", "http://h.example/x/y", False),
        ("https://h.example/x/*", "https://h.example:444/x/y", False),
        ("https://h.example/x", "https://h.example/x", True),
        ("https://h.example/x", "https://h.example/x/y", False),
        ("https://h.example", "https://h.example/anything", True),
        ("http://127.0.0.1:4242/*", "http://127.0.0.1:4242/a", True),
        ("*", "https://anything.example/", True),
        ("[2001:db8::1]", "https://[2001:db8::1]/", True),
    ],
)
def test_rules(pattern: str, url: str, fits: bool) -> None:
    check_allowed([pattern])
    assert is_allowed([pattern], target_of(url)) is fits


@pytest.mark.core
@pytest.mark.parametrize(
    "wrong",
    ["", "a b", "ftp://a.example", "a.example/path", "https://", "*.*.example", "a*.example", "https://a.example/*/b", "a.example:99999", "https://u@a.example/", "https://a.example/?q", "-"],
)  # fmt: skip
def test_what_is_no_rule(wrong: str) -> None:
    with pytest.raises(BadRequest):
        check_allowed([wrong])


@pytest.mark.core
def test_a_path_that_climbs_is_not_below_a_rule() -> None:
    """What the server would make of it is not what stands there."""
    for path in (
        "/x/../secret", "/x/%2e%2e/secret", "/x/..%2fsecret", "/x/./../secret", "/x/..;/secret",
        "/x/..;a=b/secret", "/x/%252e%252e/secret", "/x/%25252e./secret", "/x/..%00/secret", "/x/..%20/secret",
        "/x/..%3b/secret",
    ):  # fmt: skip
        assert not is_allowed(["https://h.example/x/*"], target_of("https://h.example" + path))


@pytest.mark.core
def test_a_path_with_dots_in_it_does_not_climb() -> None:
    for path in ("/x/a..b", "/x/...", "/x/.well-known/a", "/x/..a/b", "/x/a.;b"):
        assert is_allowed(["https://h.example/x/*"], target_of("https://h.example" + path))


@pytest.mark.core
def test_every_bound_counts() -> None:
    target = target_of("https://a.example/")
    check_request(ALL, [["*"], ["a.example"]], "GET", target)
    for rules, bounds, method in (
        (EgressRules(), [["*"]], "GET"),
        (ALL, [["b.example"]], "GET"),
        (ALL, [["*"], []], "GET"),
        (EgressRules(allow=["*"], methods=["GET"]), [["*"]], "POST"),
    ):
        with pytest.raises(EgressError):
            check_request(rules, bounds, method, target)


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/endless", "response_too_large"),
        ("/bytes/100001", "response_too_large"),
        ("/bomb/300000000", "response_too_large"),
        ("/bighead/40000", "response_too_large"),
        ("/bighead/1000000", "egress_failed"),
        ("/brotli", "egress_failed"),
        ("/notgzip", "egress_failed"),
        ("/packed/half", "egress_failed"),
        ("/tail/empty", "response_too_large"),
        ("/reset", "egress_failed"),
        ("/reset/body", "egress_failed"),
        ("/nonsense", "egress_failed"),
        ("/slowhead", "egress_failed"),
        ("/wait", "egress_failed"),
    ],
)
async def test_a_server_that_behaves_badly(path: str, code: str) -> None:
    """Bounded in size, unpacked or not, and in time as a whole."""
    within_s = 1 if path in ("/slowhead", "/wait") else 60
    async with world() as there:
        error = await refused(
            opened(LOOPBACK), there.url + path, bytes_max=100_000, within_s=within_s
        )
        assert error.code == code


async def test_a_server_that_says_more_than_it_announced() -> None:
    """The rest is nobody's answer: not this one's, nor the next one's on the connection."""
    async with world() as there:
        egress = opened(LOOPBACK)
        assert (await fetch(egress, there.url + "/length")).body == b"mo"
        assert (await fetch(egress, there.url + "/bytes/3")).body == b"\xff" * 3


async def test_a_bomb_takes_no_memory() -> None:
    """A gigabyte in a megabyte: it is unpacked up to what was asked for."""
    import tracemalloc

    async with world() as there:
        body = 200_000_000
        url = f"{there.url}/bomb/{body}"
        await refused(opened(LOOPBACK), url, bytes_max=10_000)  # the server has packed it once
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            unpacking = asyncio.ensure_future(refused(opened(LOOPBACK), url, bytes_max=10_000))
            assert (await unpacking).code == "response_too_large"
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most - before < body + 30_000_000  # the server's own copy, and not another one


async def test_what_is_packed_is_unpacked() -> None:
    async with world() as there:
        answer = await fetch(opened(LOOPBACK), there.url + "/bomb/5000")
        assert answer.body == bytes(5000)
        assert "content-encoding" not in dict(answer.headers)


@pytest.mark.parametrize(
    ("how", "body"),
    [("two", b"onetwo"), ("more", b"one"), ("deflate", b"one"), ("raw", b"one"), ("not", b"one")],
)
async def test_what_servers_call_packed(how: str, body: bytes) -> None:
    async with world() as there:
        assert (await fetch(opened(LOOPBACK), f"{there.url}/packed/{how}")).body == body


async def test_what_stands_behind_the_end_of_a_packed_answer_is_not_read() -> None:
    """It may have no end."""
    async with world() as there:
        assert (await fetch(opened(LOOPBACK), there.url + "/tail/junk")).body == b"one"


async def test_an_answer_that_breaks_off_may_come_whole_the_next_time() -> None:
    async with world() as there:
        with pytest.raises(Unreachable):
            await fetch(opened(LOOPBACK), there.url + "/packed/half")


async def test_letters_of_headers() -> None:
    async with world() as there:
        egress = opened(LOOPBACK)
        await fetch(egress, there.url + "/echo", headers=[("X-Name", "café\tau lait ")])
        names = [name for name, _ in there.seen[0].headers]
        assert len(names) == len(set(names)), names
        assert there.seen[0].header("x-name") == "café\tau lait"
        for name, value in (("X", "a\x0cb"), ("X", "a\x0bb"), ("X", "Ω"), ("X Y", "a"), ("", "a")):
            error = await refused(egress, there.url + "/echo", headers=[(name, value)])
            assert error.code == "invalid_request"
            assert value not in error.detail or value == "a"
        assert len(there.seen) == 1


async def test_headers_of_the_connection_are_not_the_authors() -> None:
    async with world() as there:
        headers = [("Host", "evil.example"), ("Content-Length", "9"), ("Transfer-Encoding", "chunked"), ("Connection", "upgrade"), ("X-Mine", "1")]  # fmt: skip
        await fetch(
            opened(LOOPBACK), there.url + "/echo", method="POST", body=b"x", headers=headers
        )
        seen = there.seen[0]
        assert seen.header("host") == f"127.0.0.1:{there.port}"
        assert (seen.header("content-length"), seen.header("transfer-encoding")) == ("1", None)
        assert seen.header("x-mine") == "1"


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\0b"])
async def test_a_header_cannot_become_two(value: str) -> None:
    async with world() as there:
        error = await refused(opened(LOOPBACK), there.url + "/echo", headers=[("X", value)])
        assert error.code == "invalid_request"
        assert there.seen == []


# --- what others write ----------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("text", ["Fri, 31 Dec 99999999999 23:59:59 GMT", "soon", "", "-1", "1e9"])
def test_a_retry_after_that_says_nothing(text: str) -> None:
    assert retry_after_s(text, 0) is None


@pytest.mark.core
@pytest.mark.parametrize("method", ["CONNECT", "trace", "TRACK", "GET\n", "GET / HTTP/1.1", ""])
def test_a_method_that_a_guest_may_not_ask_for(method: str) -> None:
    """Though it was taken over."""
    with pytest.raises(msgspec.ValidationError):
        read_request(msgspec.json.encode({"method": method, "url": "https://a.example/"}))

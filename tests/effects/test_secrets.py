"""Secrets: sealed in the database, in headers on the way out, and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from machinehub.effects.secrets import KeyRing, SealingKeys, check_secret, read_keys
from machinehub.errors import BadRequest, Unavailable
from tests.effects.test_broker import came, deployed, effects, send, sqlite
from tests.effects.world import world
from tests.support import problem, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from tests.effects.world import World
    from tests.support import Client

SECRET = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"
PROJECT = "/api/v1/projects/default/secrets"


def certified(folder: Path) -> tuple[ssl.SSLContext, dict[str, Any]]:
    """A server's certificate for loopback, and the settings of a hub that believes and reaches
    it.
    """
    authority = trustme.CA()
    ca = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(tls)
    return tls, {"egress_networks": "127.0.0.0/8", "egress_ca": str(ca)}


async def put(client: Client, name: str, value: str, *hosts: str) -> httpx.Response:
    return await client.http.put(f"{PROJECT}/{name}", json={"value": value, "hosts": list(hosts)})


def with_key(url: str, placeholder: str = "Bearer {{secret:KEY}}") -> dict[str, Any]:
    return {"type": "fetch", "url": url, "init": {"headers": {"Authorization": placeholder}}}


def everything(pid: int) -> bytes:
    """What a process has in its memory."""
    found = []
    with Path(f"/proc/{pid}/maps").open() as maps, Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(each, 16) for each in span.split("-"))
            if not rights.startswith("r") or end - start > 2**31:
                continue
            try:
                memory.seek(start)
                found.append(memory.read(end - start))
            except (OSError, ValueError):
                continue
    return b"\n".join(found)


async def test_a_secret_is_sent_and_is_nowhere_else(
    tmp_path: Path, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the guest, the journal, a checkpoint, a log, an error, a metric or a page: all of them
    are searched, and the memory of every worker.
    """
    caplog.set_level("DEBUG")
    tls, settings = certified(tmp_path)
    settings["database_url"] = database_url
    async with world(tls) as there, running_hub(tmp_path, workers=1, **settings) as client:
        assert (await put(client, "KEY", SECRET, "127.0.0.1")).status_code == 200
        machine = await deployed(client)
        await send(client, machine, "s", with_key(there.url + "/echo"))
        [got] = (await came(client, machine, "s"))["got"]
        assert there.seen[0].header("authorization") == f"Bearer {SECRET}"
        # Who was sent it sends it back: it stays outside all the same.
        assert "Bearer {{secret:KEY}}" in got["text"]
        # A header that breaks in httpx must not be quoted in its error.
        await send(client, machine, "s", with_key(there.url + "/echo", "\x01{{secret:KEY}}"))
        await came(client, machine, "s", 2)
        workers = [everything(pid) for pid in client.worker_pids()]
        assert any(b"{{secret:KEY}}" in each for each in workers)  # it would be found there
        await client.put_to_sleep(machine, "s")

        session = f"/api/v1/machines/{machine}/sessions/s"
        told = [
            (await client.http.get(path, headers={"Accept": accept})).content
            for path in (
                f"/{machine}/s", f"/{machine}", session, session + "/journal", session + "/effects",
                f"/api/v1/machines/{machine}/logs", "/metrics", PROJECT, "/api/v1/audit",
            )
            for accept in ("application/json", "text/html")
        ]  # fmt: skip
        dump = await dumped(client)
        assert b"{{secret:KEY}}" in dump  # what is looked for would be found
        for where in (*told, dump, caplog.text.encode(), *workers):
            for spelled in (SECRET, base64.b64encode(SECRET.encode()).decode()[:-4]):
                assert spelled.encode() not in where


async def test_a_secret_that_comes_back_in_another_spelling(tmp_path: Path) -> None:
    """As JSON or a URL has it, beside one that it begins like, and in a request that cannot be sent
    because of the letters around it: nothing of it reaches the machine or its log.
    """
    tls, settings = certified(tmp_path)
    settings["database_url"] = sqlite(tmp_path)
    quoted = 'pa"ss\\word/12345'
    async with world(tls) as there, running_hub(tmp_path, workers=1, **settings) as client:
        for name, value in (("KEY", quoted), ("LONG", "abcd1234-tail"), ("BEGIN", "abcd1234")):
            assert (await put(client, name, value, "127.0.0.1")).status_code == 200
        machine = await deployed(client)
        url = there.url + "/echo"
        await send(client, machine, "s", with_key(url, "{{secret:KEY}}|{{secret:LONG}}"))
        [got] = (await came(client, machine, "s"))["got"]
        assert there.seen[0].header("authorization") == f"{quoted}|abcd1234-tail"
        assert '"{{secret:KEY}}|{{secret:LONG}}"' in got["text"]
        both = {"authorization": "{{secret:BEGIN}} {{secret:LONG}}"}
        await send(client, machine, "s", {"type": "fetch", "url": url, "init": {"headers": both}})
        got = (await came(client, machine, "s", 2))["got"][1]
        assert "{{secret:BEGIN}} {{secret:LONG}}" in got["text"]
        for number, filled in enumerate(range(200, 300, 9), 3):
            await send(client, machine, "s", with_key(url, "a" * filled + "{{secret:LONG}}\f"))
            found = await came(client, machine, "s", number)
            assert "the header authorization" in found["why"][-1]
        logs = await client.http.get(f"/api/v1/machines/{machine}/logs")
        assert "abcd" not in str(found) + logs.text
        assert len(there.seen) == 2


@contextlib.asynccontextmanager
async def with_two_worlds(tmp_path: Path) -> AsyncIterator[tuple[World, World, Client]]:
    """A server with a certificate, which may have the secret KEY, one without, and a hub."""
    tls, settings = certified(tmp_path)
    settings["database_url"] = sqlite(tmp_path)
    async with (
        world(tls) as there,
        world() as plain,
        running_hub(tmp_path, workers=1, **settings) as client,
    ):
        await put(client, "KEY", SECRET, "127.0.0.1")
        yield there, plain, client


async def test_a_secret_is_a_password(tmp_path: Path) -> None:
    """Of basic authentication, whose header is in base64: there and back."""
    async with with_two_worlds(tmp_path) as (there, plain, client):
        machine = await deployed(client, allow=["*"])

        async def ask(number: int, url: str, credentials: bytes, how: str = "Basic") -> Any:
            value = f"{how} {base64.b64encode(credentials).decode()}"
            await send(client, machine, "s", with_key(url, value))
            return (await came(client, machine, "s", number))["got"]

        [got] = await ask(1, there.url + "/echo", b"ada \xe9:{{secret:KEY}}")
        sent = base64.b64encode(f"ada é:{SECRET}".encode("latin-1")).decode()
        assert there.seen[0].header("authorization") == f"Basic {sent}"
        assert sent not in got["text"]
        assert base64.b64encode(b"ada \xe9:{{secret:KEY}}").decode() in got["text"]
        await ask(2, plain.url + "/echo", b"ada:{{secret:KEY}}")
        await ask(3, there.url + "/echo", b"ada:{{secret:MISSING}}")
        for number, (credentials, how) in enumerate(
            [(b"ada:mine", "Basic"), (b"{{secret:KEY}}", "Other")]
        ):
            await ask(4 + number, there.url + "/echo", credentials, how)
            value = f"{how} {base64.b64encode(credentials).decode()}"
            assert there.seen[-1].header("authorization") == value
        outcomes = [each["outcome"] for each in await effects(client, machine, "s")][::-1]
        assert outcomes[1:3] == ["secret_refused", "no_such_secret"]
        assert plain.seen == []


async def dumped(client: Client) -> bytes:
    """All rows of all tables of the database."""
    import sqlalchemy as sa

    from machinehub.store.tables import metadata

    rows: list[Any] = []
    async with client.hub.engine.connect() as connection:
        for table in metadata.sorted_tables:
            rows += (await connection.execute(sa.select(table))).all()
    return b"\n".join(
        each if isinstance(each, bytes) else str(each).encode() for row in rows for each in row
    )


async def test_a_secret_is_for_its_hosts_over_https_alone(tmp_path: Path) -> None:
    async with with_two_worlds(tmp_path) as (there, plain, client):
        await put(client, "NOWHERE", SECRET)
        machine = await deployed(client, allow=["*"])
        other = there.url.replace("127.0.0.1", "localhost")
        where = plain.url.replace("/", "~")
        wrong = [
            with_key(plain.url + "/echo"),
            with_key(other + "/echo"),
            with_key(there.url + "/echo", "{{secret:NOWHERE}}"),
            with_key(there.url + "/echo", "{{secret:MISSING}}"),
        ]
        for number, each in enumerate(wrong, 1):
            await send(client, machine, "s", each)
            await came(client, machine, "s", number)
        outcomes = [each["outcome"] for each in await effects(client, machine, "s")][::-1]
        assert outcomes == ["secret_refused", "secret_refused", "secret_refused", "no_such_secret"]
        assert there.seen == plain.seen == []
        # A redirect to another origin does not carry it along.
        await send(client, machine, "r", with_key(f"{there.url}/redirect/302/{where}~echo"))
        await came(client, machine, "r")
        assert [each.header("authorization") for each in plain.seen] == [None]
        # In a URL or a body the placeholder is text like any other.
        init = {"method": "POST", "body": "{{secret:KEY}}"}
        await send(
            client, machine, "b", {"type": "fetch", "url": there.url + "/echo", "init": init}
        )
        await came(client, machine, "b")
        assert there.seen[-1].body == b"{{secret:KEY}}"


async def test_another_projects_secret_is_not_there(tmp_path: Path) -> None:
    tls, settings = certified(tmp_path)
    settings["database_url"] = sqlite(tmp_path)
    async with world(tls) as there, running_hub(tmp_path, workers=1, **settings) as client:
        await client.http.post("/api/v1/projects", json={"name": "other"})
        body = {"value": SECRET, "hosts": ["127.0.0.1"]}
        assert (await client.http.put("/api/v1/projects/other/secrets/KEY", json=body)).is_success
        machine = await deployed(client)
        await send(client, machine, "s", with_key(there.url + "/echo"))
        [why] = (await came(client, machine, "s"))["why"]
        assert "no secret KEY" in why
        assert (await client.http.get(PROJECT)).json()["data"] == []


async def test_secrets_over_the_api(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        for name, value, hosts in (
            ("a b", "x", []), ("A" * 65, "x", []), ("A", "", []), ("A", "x\n", []), ("A", "é", []),
            ("A", "x" * 9000, []), ("A", "x", ["[::1]:1"]), ("A", "x", ["*"]), ("A", "x", ["https://a.example"]), ("A", "x", ["a.example:1"]),
            ("A", "x", ["a"] * 21),
        ):  # fmt: skip
            answer = await put(client, name.replace(" ", "%20"), value, *hosts)
            problem(answer, 400, "invalid_secret")
        assert (await put(client, "IPV6", "x", "[2001:db8::1]")).status_code == 200
        assert (await client.http.delete(f"{PROJECT}/IPV6")).status_code == 204
        wrong = await client.http.put(f"{PROJECT}/A", content=b'{"value": "very secret", "x": 1}')
        assert "very secret" not in str(problem(wrong, 400, "invalid_body"))
        one = (await put(client, "A", "first", "a.example")).json()
        two = (await put(client, "A", "second", "*.b.example")).json()
        assert set(two) == {"name", "hosts", "key", "created_at", "changed_at"}
        assert (two["hosts"], two["created_at"]) == (["*.b.example"], one["created_at"])
        listed = (await client.http.get(PROJECT)).json()["data"]
        assert listed == [two]
        assert (await client.http.delete(f"{PROJECT}/A")).status_code == 204
        problem(await client.http.delete(f"{PROJECT}/A"), 404, "no_such_secret")


async def test_a_key_is_replaced_by_another(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        await put(client, "A", "one")
        await put(client, "B", "two")
        file = tmp_path / "secrets.key"
        assert file.stat().st_mode & 0o777 == 0o600
        before = read_keys(file.read_text())
        done = (await client.http.post("/api/v1/secrets/rotate")).json()
        after = read_keys(file.read_text())
        assert (done["secrets"], len(after)) == (2, 1)
        assert after != before
        listed = (await client.http.get(PROJECT)).json()["data"]
        assert {each["key"] for each in listed} == {done["key"]}
        found = await client.hub.secrets.reveal("default", ["A", "B"])  # type: ignore[arg-type]
        assert {name: each.value for name, each in found.items()} == {"A": "one", "B": "two"}


async def test_a_secret_that_is_set_while_the_key_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not sealed with a key that is thrown away."""
    async with running_hub(tmp_path, workers=1) as client:
        await put(client, "A", "one")
        secrets = client.hub.secrets
        put_it, is_sealed, may_go_on = secrets._store.put, asyncio.Event(), asyncio.Event()

        async def put_later(*args: Any, **more: Any) -> None:
            is_sealed.set()
            await may_go_on.wait()
            await put_it(*args, **more)

        monkeypatch.setattr(secrets._store, "put", put_later)
        setting = asyncio.ensure_future(put(client, "B", "two"))
        await is_sealed.wait()
        rotating = asyncio.ensure_future(secrets.rotate())
        await asyncio.sleep(0)
        may_go_on.set()
        await setting
        assert (await rotating)[0] == 2
        found = await secrets.reveal("default", ["A", "B"])  # type: ignore[arg-type]
        assert {name: each.value for name, each in found.items()} == {"A": "one", "B": "two"}


async def test_keys_of_an_operator(tmp_path: Path) -> None:
    """The first seals, all open; without the right one a secret stays shut, and says so."""
    old, new = (base64.b64encode(os.urandom(32)).decode() for _ in range(2))
    async with running_hub(tmp_path, workers=1, secrets_key=old) as client:
        await put(client, "A", "one")
    assert not (tmp_path / "secrets.key").exists()
    async with running_hub(tmp_path, workers=1, secrets_key=new) as client:
        with pytest.raises(Unavailable) as error:
            await client.hub.secrets.reveal("default", ["A"])  # type: ignore[arg-type]
        assert error.value.code == "secrets_locked"
        problem(await client.http.post("/api/v1/secrets/rotate"), 503, "secrets_locked")
    async with running_hub(tmp_path, workers=1, secrets_key=f"{new},{old}") as client:
        assert (await client.http.post("/api/v1/secrets/rotate")).json()["secrets"] == 1
    async with running_hub(tmp_path, workers=1, secrets_key=new) as client:
        found = await client.hub.secrets.reveal("default", ["A"])  # type: ignore[arg-type]
        assert found["A"].value == "one"


@pytest.mark.core
def test_what_is_sealed_is_of_one_name() -> None:
    keys = SealingKeys([bytes(32)])
    sealed = keys.seal(b"x", b"p\0A")
    assert keys.unseal(sealed, b"p\0A", keys.newest) == b"x"
    for data, about in ((sealed, b"p\0B"), (sealed[:-1] + b"\0", b"p\0A"), (b"", b"p\0A")):
        with pytest.raises((Unavailable, ValueError)):
            keys.unseal(data, about, keys.newest)
    assert keys.seal(b"x", b"p\0A") != sealed


@pytest.mark.core
@pytest.mark.parametrize("text", ["x", base64.b64encode(b"short").decode(), "é", "AAAA=="])
def test_what_is_no_key(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        read_keys(text)
    with pytest.raises(Unavailable):
        KeyRing(text, tmp_path / "k", own=True).keys(makes=True)


@pytest.mark.core
def test_a_hub_of_several_makes_no_key(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="MACHINEHUB_SECRETS_KEY"):
        KeyRing("", tmp_path / "k", own=False).keys(makes=True)
    assert not (tmp_path / "k").exists()


@pytest.mark.core
def test_a_secret_that_cannot_be_a_header() -> None:
    for value in ("a\r\nX: y", "\0", "\x7f", " \t"):
        with pytest.raises(BadRequest):
            check_secret("A", value, [])

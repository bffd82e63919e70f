"""Connect tokens through the front door: whose they are, what they allow, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hmac
import json
from typing import TYPE_CHECKING, Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from machinehub.clock import ManualClock
from machinehub.egress.addresses import EgressError
from machinehub.store.members import KEYS_MAX
from tests.support import COUNTER, Client, problem, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SAYS = """
import { assign, setup } from "xstate";
export default setup({ types: {} as { context: { last: unknown } } }).createMachine({
  context: { last: null }, on: { "*": { actions: assign({ last: ({ event }) => event.sender }) } },
});
"""


class App:
    """An app's back end, which has a key of its project."""

    def __init__(self, hub: Client, kid: str, secret: str, machine: str) -> None:
        self.hub = hub
        self.kid = kid
        self.secret = secret
        self.machine = machine

    def token(self, sub: str | None = "ada", *, within_s: int = 600, **claims: Any) -> str:
        now_s = self.hub.hub.tokens._clock.now_ms() // 1000
        said = {"sub": sub, "exp": now_s + within_s, "iat": now_s} | claims
        said = {key: value for key, value in said.items() if value is not None}
        return jwt.encode(said, self.secret, "HS256", headers={"kid": self.kid})

    async def get(self, token: str | None, session: str = "s", **headers: str) -> Any:
        shown = {"Authorization": f"Bearer {token}" if token else "", **headers}
        return await self.hub.http.get(f"/{self.machine}/{session}", headers=shown)

    async def send(self, token: str, type_: str = "hi", session: str = "s") -> Any:
        return await self.hub.http.post(
            f"/{self.machine}/{session}",
            json={"type": type_, "sender": {"id": "forged", "roles": ["admin"]}},
            headers={"Authorization": f"Bearer {token}"},
        )

    @contextlib.asynccontextmanager
    async def socket(self, *shown: str, session: str = "s") -> AsyncIterator[Any]:
        protocols = ["machinehub.v1", *(f"machinehub.token.{each}" for each in shown)]
        url = f"{self.hub.url.replace('http', 'ws', 1)}/{self.machine}/{session}"
        async with connect(url, subprotocols=protocols) as socket:  # type: ignore[arg-type]
            yield socket


async def closed(socket: Any) -> int:
    """The code that the hub closes it with."""
    with pytest.raises(ConnectionClosed) as why:
        while True:
            await asyncio.wait_for(socket.recv(), 60)
    assert why.value.rcvd is not None
    return why.value.rcvd.code


async def new_app(hub: Client, *, project: str = "default", name: str = "machine") -> App:
    made = await hub.http.post(f"/api/v1/projects/{project}/jwt-keys", json={"name": name})
    assert made.status_code == 201, made.text
    upload = {"name": name, "entry": "m.ts", "files": {"m.ts": SAYS}}
    deployed = await hub.http.post(f"/api/v1/deployments?project={project}", json=upload)
    assert deployed.json()["machine"]["private"] is True
    machine = deployed.json()["machine"]["id"]
    return App(hub, made.json()["kid"], made.json()["secret"], machine)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    async with running_hub(tmp_path_factory.mktemp("app"), token="mh_the-hubs-own") as hub:
        yield await new_app(hub)


async def test_a_user_is_known_to_the_machine(app: App) -> None:
    token = app.token(roles=["editor"], name="Ada", org="acme")
    answer = (await app.send(token, session="known")).json()
    sender = answer["snapshot"]["context"]["last"]
    assert sender.pop("id") not in ("forged", "ada")
    assert sender == {"user": "ada", "roles": ["editor"], "claims": {"name": "Ada", "org": "acme"}}
    again = (await app.send(app.token(), session="known")).json()
    assert again["snapshot"]["context"]["last"]["roles"] == []


async def test_a_user_is_one_member_on_all_devices(app: App) -> None:
    async with (
        app.socket(app.token(), session="devices") as one,
        app.socket(app.token(), session="devices") as two,
        app.socket(app.token("bob"), session="devices") as other,
    ):
        ids = [json.loads(await each.recv())["connection"]["id"] for each in (one, two, other)]
        assert ids[0] == ids[1] != ids[2]
        there = await app.hub.http.get(f"/{app.machine}/devices/presence")
        members = there.json()["members"]
        assert sorted((each["user"], each["roles"]) for each in members) == [
            ("ada", []),
            ("bob", []),
        ]


async def test_a_private_machine_wants_a_connect_token(app: App) -> None:
    key = await app.hub.http.post(
        "/api/v1/projects/default/keys", json={"name": "browser", "origins": []}
    )
    public = key.json()["token"]
    problem(await app.get(None), 401, "unauthorised")
    problem(await app.get(public), 401, "unauthorised")
    problem(await app.get("mh_wrong"), 401, "unauthorised")
    definition = await app.hub.http.get(f"/{app.machine}", headers={"Authorization": ""})
    problem(definition, 401, "unauthorised")
    assert (await app.get(app.token())).status_code == 200
    page = await app.get(None, Accept="text/html")
    assert page.status_code == 401
    assert page.headers["content-type"].startswith("text/html")
    async with app.socket() as socket:
        assert await closed(socket) == 4001
    machine = f"/api/v1/machines/{app.machine}"
    shown = await app.hub.http.patch(machine, json={"private": False})
    assert shown.json()["private"] is False
    assert (await app.get(None)).status_code == 200
    assert (await app.get(public)).status_code == 200
    await app.hub.http.patch(machine, json={"private": True})
    problem(await app.get(None), 401, "unauthorised")


async def test_a_publishable_key_does_nothing_else(app: App) -> None:
    made = await app.hub.http.post(
        "/api/v1/projects/default/keys",
        json={"name": "site", "origins": ["https://app.example"]},
    )
    key = made.json()["token"]
    assert key.startswith("mhp_")
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("/api/v1/machines", "/api/v1/projects", f"/api/v1/machines/{app.machine}/logs"):
        problem(await app.hub.http.get(path, headers=headers), 403, "forbidden")
    token = app.token()
    for origin, status in (("https://app.example", 200), ("https://evil.example", 403)):
        shown = {"Origin": origin, "Machinehub-Key": key}
        answer = await app.get(token, **shown)
        assert answer.status_code == status, answer.text
    async with app.socket(token, key) as socket:
        assert json.loads(await socket.recv())["type"] == "snapshot"


@pytest.mark.parametrize(
    ("claims", "session", "status"),
    [
        ({"session": "mine"}, "mine", 200),
        ({"session": "mine"}, "mine2", 403),
        ({"session": ["a", "team-*"]}, "team-7", 200),
        ({"session": ["a", "team-*"]}, "other", 403),
        ({"machine": "machine"}, "any", 200),
        ({"machine": ["another"]}, "any", 403),
        ({"events": ["hi", "chat.*"]}, "any", 200),
        ({"events": []}, "any", 200),
    ],
)
async def test_a_token_is_for_what_it_says(
    app: App, claims: dict[str, Any], session: str, status: int
) -> None:
    answer = await app.get(app.token(**claims), session=session)
    assert answer.status_code == status, answer.text
    if status == 403:
        problem(answer, 403, "forbidden")
        async with app.socket(app.token(**claims), session=session) as socket:
            assert await closed(socket) == 4003


async def test_a_token_may_name_events(app: App) -> None:
    token = app.token(events=["hi", "chat.*"])
    assert (await app.send(token, "hi")).status_code == 200
    assert (await app.send(token, "chat.said")).status_code == 200
    problem(await app.send(token, "bye"), 403, "forbidden")
    async with app.socket(token) as socket:
        await socket.recv()
        await socket.send('{"type":"event","id":"1","event":{"type":"bye"}}')
        while (frame := json.loads(await socket.recv()))["type"] != "ack":
            pass
        assert (frame["outcome"], frame["error"]["code"]) == ("rejected", "forbidden")


def b64(text: str) -> str:
    return jwt.utils.base64url_encode(text.encode()).decode()


async def test_what_is_no_token(app: App) -> None:
    """Whatever is wrong, the answer is the same."""
    now_s = app.hub.hub.tokens._clock.now_ms() // 1000
    good = {"sub": "ada", "exp": now_s + 600}
    head, body, signature = app.token().split(".")
    none = f"{b64(json.dumps({'alg': 'none', 'kid': app.kid}))}.{body}."
    other = jwt.encode(
        good, "another secret that is long enough, which it must be", "HS256", {"kid": app.kid}
    )
    wrong = [
        none,
        other,
        f"{head}.{body}.{signature[:-2]}xx",
        f"{head}.{b64(json.dumps(good | {'roles': ['admin']}))}.{signature}",
        jwt.encode(good, app.secret * 2, "HS512", {"kid": app.kid}),
        jwt.encode(good, app.secret, "HS256"),
        jwt.encode(good, app.secret, "HS256", {"kid": "nobody"}),
        jwt.encode(good, app.secret, "HS256", {"kid": "../../etc/passwd"}),
        app.token(within_s=-1),
        app.token(nbf=now_s + 3600),
        app.token(iat=now_s + 3600),
        app.token(exp=None),
        app.token(exp="soon"),
        app.token(sub=None),
        app.token(sub=""),
        app.token(sub="x" * 300),
        app.token(roles=7),
        app.token(roles=[7]),
        app.token(roles=["r"] * 200),
        app.token(session={"a": 1}),
        app.token(note="x" * 3000),
        app.token(note="x" * 20_000),
        "ey.ey.ey",
        "eyJ" + "[" * 3000 + ".e30.",
    ]
    said = set()
    for token in wrong:
        app.hub.hub.admission._wrong = type(app.hub.hub.admission._wrong)()  # not to be slowed down
        answer = await app.get(token)
        assert answer.status_code == 401, (token[:100], answer.text)
        said.add(answer.text)
    assert len(said) == 1


async def test_a_key_of_another_project_is_nobodys_here(app: App) -> None:
    await app.hub.http.post("/api/v1/projects", json={"name": "other"})
    theirs = await new_app(app.hub, project="other", name="theirs")
    mine, there = await app.get(theirs.token()), await theirs.get(app.token())
    gone = await app.hub.http.get("/Qq1Qq1Qq/s", headers={"Authorization": f"Bearer {app.token()}"})
    for answer, machine in ((mine, app.machine), (there, theirs.machine), (gone, "Qq1Qq1Qq")):
        problem(answer, 404, "no_such_machine")
        assert answer.text.replace(machine, "Qq1Qq1Qq") == gone.text
    async with app.socket(theirs.token()) as socket:
        assert await closed(socket) == 4004


async def test_tokens_end(tmp_path: Path) -> None:
    """By their time, their user, their key, or their session: what they opened is closed."""
    clock = ManualClock()
    async with running_hub(tmp_path, token="mh_the-hubs-own", clock=clock) as hub:
        app = await new_app(hub)
        project = "/api/v1/projects/default"
        for sub, how in (
            ("time", None),
            ("user", ("revocations", {"sub": "user"})),
            ("session", ("revocations", {"machine": app.machine, "session": "s"})),
            ("key", f"jwt-keys/{app.kid}"),
        ):
            token = app.token(sub, within_s=60)
            async with app.socket(token) as socket:
                await socket.recv()
                if how is None:
                    clock.move_to(clock.now_ms() + 60_000)
                    await hub.hub.tokens.refresh()
                elif isinstance(how, tuple):
                    made = await hub.http.post(f"{project}/{how[0]}", json=how[1])
                    assert made.status_code == 201, made.text
                else:
                    assert (await hub.http.delete(f"{project}/{how}")).status_code == 204
                assert await closed(socket) == 4001, sub
            if sub != "session":
                problem(await app.get(token), 401, "unauthorised")
            clock.move_to(clock.now_ms() + 2_000)
            if sub in ("user", "session"):
                assert (await app.get(app.token(sub))).status_code == 200
        listed = (await hub.http.get(f"{project}/revocations")).json()["data"]
        assert [each["sub"] for each in listed] == ["user", None]
        number = listed[0]["id"]
        assert (await hub.http.delete(f"{project}/revocations/{number}")).status_code == 204


async def test_a_session_that_was_revoked_is_closed_to_older_tokens(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, token="mh_the-hubs-own", clock=clock) as hub:
        app = await new_app(hub)
        token = app.token()
        assert (await app.get(token)).status_code == 200
        body = {"machine": app.machine, "session": "s"}
        await hub.http.post("/api/v1/projects/default/revocations", json=body)
        problem(await app.get(token), 401, "unauthorised")
        assert (await app.get(token, session="another")).status_code == 200


async def test_a_token_in_a_url_opens_a_stream(app: App) -> None:
    url = f"/{app.machine}/s?token={app.token()}"
    headers = {"Accept": "text/event-stream", "Authorization": ""}
    async with app.hub.http.stream("GET", url, headers=headers) as stream:
        assert stream.status_code == 200


async def test_on_an_open_hub_a_token_says_who_somebody_is(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(SAYS)
        made = await hub.http.post("/api/v1/projects/default/jwt-keys", json={"name": "k"})
        app = App(hub, made.json()["kid"], made.json()["secret"], machine)
        assert (await app.send("mhp_any")).json()["snapshot"]["context"]["last"].keys() == {"id"}
        said = (await app.send(app.token())).json()["snapshot"]["context"]["last"]
        assert said["user"] == "ada"
        problem(await app.send(app.token() + "x"), 401, "unauthorised")


# --- an identity provider's keys


class Issuer:
    """Publishes its keys on loopback."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.asked = 0
        self.answer: bytes | None = None
        self.delay_s = 0.0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        body = json.dumps({"keys": self.keys}).encode() if self.answer is None else self.answer
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def issuing(folder: Path, **settings: Any) -> AsyncIterator[tuple[App, Issuer, ManualClock]]:
    issuer, clock = Issuer(), ManualClock()
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
    allowed = {"egress_networks": "127.0.0.0/8"} | settings
    async with server, running_hub(folder, token="mh_own", clock=clock, **allowed) as hub:
        app = await new_app(hub)
        body = {"name": "idp", "jwks_url": issuer.url, "issuer": "https://idp", "audience": "app"}
        made = await hub.http.post("/api/v1/projects/default/jwt-keys", json=body)
        assert made.status_code == 201, made.text
        assert "secret" not in made.json()
        yield app, issuer, clock


def signed(app: App, key: Any, algorithm: str, kid: str, **more: Any) -> str:
    now_s = app.hub.hub.tokens._clock.now_ms() // 1000
    claims = {"sub": "ada", "exp": now_s + 3600, "iss": "https://idp", "aud": "app"} | more
    return jwt.encode(claims, key, algorithm, {"kid": kid})


def confused(app: App, key: bytes, kid: str) -> str:
    """Signed as HS256 with what is no secret: PyJWT itself refuses to."""
    now_s = app.hub.hub.tokens._clock.now_ms() // 1000
    claims = {"sub": "ada", "exp": now_s + 3600, "iss": "https://idp", "aud": "app"}
    said = f"{b64(json.dumps({'alg': 'HS256', 'kid': kid}))}.{b64(json.dumps(claims))}"
    signature = hmac.digest(key, said.encode(), "sha256")
    return f"{said}.{jwt.utils.base64url_encode(signature).decode()}"


def published(key: Any, kid: str) -> dict[str, Any]:
    algorithm: Any = (
        jwt.algorithms.OKPAlgorithm
        if isinstance(key, Ed25519PrivateKey)
        else jwt.algorithms.RSAAlgorithm
    )
    said: dict[str, Any] = json.loads(algorithm.to_jwk(key.public_key()))
    return said | {"kid": kid, "use": "sig"}


async def test_an_issuers_tokens_are_believed(tmp_path: Path) -> None:
    ed, rs = Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)
    async with issuing(tmp_path) as (app, issuer, clock):
        issuer.keys = [published(ed, "ed"), published(rs, "rs")]
        assert (await app.get(signed(app, ed, "EdDSA", "ed"))).status_code == 200
        assert (await app.get(signed(app, rs, "RS256", "rs"))).status_code == 200
        assert issuer.asked == 1
        for wrong in (
            signed(app, ed, "EdDSA", "ed", aud="another"),
            signed(app, ed, "EdDSA", "ed", iss="https://evil"),
            signed(app, ed, "EdDSA", "rs"),
            signed(app, rs, "RS512", "rs"),
            signed(app, Ed25519PrivateKey.generate(), "EdDSA", "ed"),
            # The public key as a secret of HS256.
            confused(app, json.dumps(issuer.keys[1]).encode(), "rs"),
            signed(app, rs, "RS256", "unknown"),
        ):
            problem(await app.get(wrong), 401, "unauthorised")
        assert issuer.asked == 1  # strangers' key ids do not make the hub ask again and again
        issuer.keys = [published(ed, "new")]
        clock.move_to(clock.now_ms() + 31_000)
        assert (await app.get(signed(app, ed, "EdDSA", "new"))).status_code == 200
        assert issuer.asked == 2


async def test_keys_that_cannot_be_fetched(tmp_path: Path) -> None:
    ed = Ed25519PrivateKey.generate()
    async with issuing(tmp_path) as (app, issuer, clock):
        issuer.keys = [published(ed, "ed")]
        for answer in (b"", b"[]", b'{"keys":7}', b'{"keys":[7]}', b"x" * 300_000, b"[" * 100_000):
            issuer.answer = answer
            clock.move_to(clock.now_ms() + 31_000)
            problem(await app.get(signed(app, ed, "EdDSA", "ed")), 401, "unauthorised")
        issuer.answer = None
        clock.move_to(clock.now_ms() + 31_000)
        assert (await app.get(signed(app, ed, "EdDSA", "ed"))).status_code == 200
        issuer.answer = b"down"  # what was fetched before counts on
        clock.move_to(clock.now_ms() + 700_000)
        assert (await app.get(signed(app, ed, "EdDSA", "ed"))).status_code == 200


async def test_keys_are_not_fetched_from_inside(tmp_path: Path) -> None:
    ed = Ed25519PrivateKey.generate()
    async with issuing(tmp_path, egress_networks="") as (app, issuer, _):
        issuer.keys = [published(ed, "ed")]
        problem(await app.get(signed(app, ed, "EdDSA", "ed")), 401, "unauthorised")
        assert issuer.asked == 0
        for url in (
            "ftp://a.example/x",
            "https://u:p@a.example",
            "https:///x",
            "file:///etc/passwd",
        ):
            body = {"name": "x", "jwks_url": url, "issuer": "i", "audience": "a"}
            answer = await app.hub.http.post("/api/v1/projects/default/jwt-keys", json=body)
            problem(answer, 400, "invalid_jwks")


async def test_what_is_no_key_or_revocation(app: App) -> None:
    project = "/api/v1/projects/default"
    for path, body, code in (
        ("keys", {"name": "x", "origins": ["app.example"]}, "invalid_origins"),
        ("keys", {"name": "x", "origins": ["https://a.example/"]}, "invalid_origins"),
        ("keys", {"name": ""}, "invalid_name"),
        ("jwt-keys", {"name": "x", "issuer": "i"}, "invalid_jwks"),
        ("jwt-keys", {"name": "x", "secret": "mine"}, "invalid_body"),
        ("revocations", {}, "invalid_revocation"),
        ("revocations", {"sub": ""}, "invalid_revocation"),
        ("revocations", {"sub": "a", "session": "s"}, "invalid_revocation"),
        ("revocations", {"session": "s"}, "invalid_revocation"),
        ("revocations", {"machine": "nosuch", "session": "s"}, "no_such_machine"),
    ):
        answer = await app.hub.http.post(f"{project}/{path}", json=body)
        assert answer.status_code in (400, 404), (body, answer.text)
        assert answer.json()["code"] == code
    for path, code in (
        ("keys/99", "no_such_key"),
        ("keys/x", "no_such_key"),
        ("jwt-keys/nosuch", "no_such_key"),
        ("jwt-keys/a%00b", "no_such_key"),
        ("revocations/99", "no_such_revocation"),
    ):
        problem(await app.hub.http.delete(f"{project}/{path}"), 404, code)


async def test_who_did_what_is_kept(app: App) -> None:
    await app.hub.http.post("/api/v1/projects/default/keys", json={"name": "noted"})
    await app.send(app.token(), session="looked")
    for _ in range(2):
        await app.hub.http.get(f"/api/v1/machines/{app.machine}/sessions/looked")
    lines = (await app.hub.http.get("/api/v1/audit?limit=2")).json()
    assert [each["what"] for each in lines["data"]] == [
        f"read session looked of machine ({app.machine})",
        "created publishable key 'noted' of project default",
    ]
    assert {each["who"] for each in lines["data"]} == {"token 'MACHINEHUB_TOKEN'"}
    assert {each["project"] for each in lines["data"]} == {"default"}
    more = (await app.hub.http.get(f"/api/v1/audit?cursor={lines['next']}")).json()["data"]
    assert more[-1]["what"].startswith("created jwt key")
    none = await app.hub.http.get("/api/v1/audit?project=nosuch")
    problem(none, 404, "no_such_project")


# --- what an attack found


async def test_projects_that_know_one_issuer_decide_for_themselves(tmp_path: Path) -> None:
    """Another project's key that is revoked, or user, changes nothing here; nor does what another
    publishes under the same names, or how slow it is.
    """
    ed = Ed25519PrivateKey.generate()
    async with issuing(tmp_path) as (app, issuer, clock):
        hostile = Issuer()
        server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0)
        hostile.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        issuer.keys = [published(ed, "ed")]
        await app.hub.http.post("/api/v1/projects", json={"name": "other"})
        theirs = await new_app(app.hub, project="other", name="theirs")
        kids = []
        for number, url in enumerate((issuer.url, hostile.url)):
            body = {
                "name": f"i{number}",
                "jwks_url": url,
                "issuer": "https://idp",
                "audience": "app",
            }
            made = await app.hub.http.post("/api/v1/projects/other/jwt-keys", json=body)
            kids.append(made.json()["kid"])
        rs = rsa.generate_private_key(65537, 2048)
        private = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rs)) | {"kid": "ed"}
        hostile.keys, hostile.delay_s = [private], 30
        token = signed(app, ed, "EdDSA", "ed")
        assert (await app.get(token)).status_code == 200  # without waiting for the slow one
        assert (await theirs.get(token)).status_code == 200
        await app.hub.http.delete(f"/api/v1/projects/other/jwt-keys/{kids[0]}")
        await app.hub.http.post("/api/v1/projects/other/revocations", json={"sub": "ada"})
        clock.move_to(clock.now_ms() + 2000)
        fresh = signed(app, ed, "EdDSA", "ed")
        assert (await app.get(fresh)).status_code == 200
        problem(await theirs.get(fresh), 404, "no_such_machine")
        server.close()


async def test_a_compressed_answer_is_not_unpacked(tmp_path: Path) -> None:
    async with issuing(tmp_path) as (app, _, _):

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = gzip.compress(b" " * 10_000_000)
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body
            )
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        async with server:
            with pytest.raises(EgressError, match="compressed"):
                await app.hub.hub.connect_tokens._public._egress.get(
                    url, owner="a", bytes_max=1000, within_s=5
                )


async def test_a_key_that_is_not_published_any_more_ends(tmp_path: Path) -> None:
    ed = Ed25519PrivateKey.generate()
    async with issuing(tmp_path) as (app, issuer, clock):
        issuer.keys = [published(ed, "ed")]
        token = signed(app, ed, "EdDSA", "ed")
        assert (await app.get(token)).status_code == 200
        issuer.keys = [published(Ed25519PrivateKey.generate(), "new")]
        clock.move_to(clock.now_ms() + 601_000)
        problem(await app.get(token), 401, "unauthorised")


async def test_an_event_id_is_its_users_own(app: App) -> None:
    """Nobody uses up another's."""
    headers = {"Idempotency-Key": "order-17"}
    url = f"/{app.machine}/ids"

    async def post(sub: str, type_: str) -> Any:
        shown = headers | {"Authorization": f"Bearer {app.token(sub)}"}
        return await app.hub.http.post(url, json={"type": type_}, headers=shown)

    first = await post("mallory", "nothing")
    mine = await post("ada", "pay")
    assert (first.json()["seq"], mine.json()["seq"]) == (2, 3)
    assert (await post("ada", "pay")).json()["seq"] == 3
    problem(await post("ada", "another"), 422, "idempotency_mismatch")
    path = f"/api/v1/machines/{app.machine}/sessions/ids/journal"
    journal = (await app.hub.http.get(path)).json()["data"]
    assert [each.get("id") for each in journal] == [None, "order-17", "order-17"]


async def test_waiting_ends_with_the_token(app: App) -> None:
    token = app.token("waiting")
    waiting = asyncio.create_task(
        app.hub.http.post(
            f"/{app.machine}/w/wait",
            json={"condition": "done", "timeout_ms": 20_000},
            headers={"Authorization": f"Bearer {token}"},
        )
    )
    await until(lambda: app.hub.watchers(app.machine, "w"))
    body = {"sub": "waiting"}
    await app.hub.http.post("/api/v1/projects/default/revocations", json=body)
    problem(await waiting, 401, "unauthorised")


async def test_a_machine_that_becomes_private_lets_nobody_stay(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER)
        async with hub.socket(f"{machine}/s") as socket:
            await socket.until("snapshot")
            await hub.http.patch(f"/api/v1/machines/{machine}", json={"private": True})
            assert await closed(socket.connection) == 4010
        async with hub.socket(f"{machine}/s") as again:
            assert await closed(again.connection) == 4001


async def test_a_key_in_a_first_frame_is_held_to_its_origins(app: App) -> None:
    made = await app.hub.http.post(
        "/api/v1/projects/default/keys", json={"name": "h", "origins": ["https://app.example"]}
    )
    url = f"{app.hub.url.replace('http', 'ws', 1)}/{app.machine}/s"
    protocols: Any = ["machinehub.v1", "machinehub.hello"]
    for origin, code in (("https://evil.example", 4003), ("https://app.example", 4001)):
        async with connect(url, subprotocols=protocols, origin=origin) as socket:  # type: ignore[arg-type]
            await socket.send(json.dumps({"type": "hello", "token": made.json()["token"]}))
            assert await closed(socket) == code  # 4001: the machine is private


async def test_a_token_that_may_look_beside_a_users(app: App) -> None:
    made = await app.hub.http.post(
        "/api/v1/projects/default/tokens", json={"name": "looks", "scopes": ["read"]}
    )
    await app.send(app.token())  # a token that only looks begins no session
    async with app.socket(app.token(), made.json()["token"]) as socket:
        await socket.recv()
        await socket.send('{"type":"event","id":"1","event":{"type":"hi"}}')
        while (frame := json.loads(await socket.recv()))["type"] != "ack":
            pass
        assert frame["error"]["code"] == "forbidden"


async def test_tokens_stand_in_no_log(app: App, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever they are, wherever they come, and however much is logged."""
    caplog.set_level("DEBUG")
    made = await app.hub.http.post("/api/v1/projects/default/keys", json={"name": "logged"})
    shown = [app.token(), app.token() + "x", "mh_wrong-one", made.json()["token"]]
    caplog.clear()
    for token in shown:
        await app.get(token)
        await app.hub.http.get(f"/{app.machine}/s?token={token}", headers={"Authorization": ""})
        async with connect(
            f"{app.hub.url.replace('http', 'ws', 1)}/{app.machine}/s?token={token}"
        ) as socket:
            await socket.recv()
        async with app.socket(token) as socket:
            await socket.recv()
    logged = [each for each in caplog.records if each.name.startswith(("machinehub", "uvicorn"))]
    text = " ".join(each.getMessage() for each in logged)
    assert [
        each.name for each in logged if any(token in each.getMessage() for token in shown)
    ] == []
    assert [token for token in shown if token in text] == []


async def test_a_project_has_so_many_keys(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        path = "/api/v1/projects/default/jwt-keys"
        made = [await hub.http.post(path, json={"name": str(n)}) for n in range(KEYS_MAX + 1)]
        assert [each.status_code for each in made] == [201] * KEYS_MAX + [409]
        problem(made[-1], 409, "keys_exceeded")
        await hub.http.delete(f"{path}/{made[0].json()['kid']}")
        assert (await hub.http.post(path, json={"name": "again"})).status_code == 201


async def test_looking_begins_no_session(app: App) -> None:
    made = await app.hub.http.post(
        "/api/v1/projects/default/tokens", json={"name": "reader", "scopes": ["read"]}
    )
    token = made.json()["token"]
    problem(await app.get(token, session="unborn"), 404, "no_such_session")
    async with app.socket(token, session="unborn") as socket:
        assert await closed(socket) == 4004
    await app.send(app.token(), session="unborn")
    assert (await app.get(token, session="unborn")).json()["seq"] == 2
    problem(await app.send(token, session="unborn"), 403, "forbidden")

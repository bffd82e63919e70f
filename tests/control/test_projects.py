"""Two tenants on one hub: what one has is not there for the other; and what a token's scopes allow."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from machinehub.clock import ManualClock
from tests.durable import send
from tests.store.test_backup import make_older
from tests.support import COUNTER, Client, problem, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ALL = ["deploy", "read", "operate", "admin"]
UPLOAD = {"name": "same", "entry": "c.ts", "files": {"c.ts": COUNTER}, "private": False}


class Tenant:
    """Somebody with a token of one project, and a machine there."""

    def __init__(self, url: str, token: str) -> None:
        self.token = token
        self.http = httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30
        )
        self.machine = ""
        self.project = ""

    async def call(self, method: str, path: str, **more: Any) -> httpx.Response:
        return await self.http.request(method, f"/api/v1{path}", **more)


async def project(hub: Client, name: str, scopes: list[str] = ALL) -> Tenant:
    made = (await hub.http.post("/api/v1/projects", json={"name": name})).json()
    answer = await hub.http.post(
        f"/api/v1/projects/{name}/tokens", json={"name": "t", "scopes": scopes}
    )
    assert answer.status_code == 201, answer.text
    tenant = Tenant(hub.url, answer.json()["token"])
    tenant.project = made["id"]
    return tenant


@contextlib.asynccontextmanager
async def two_tenants(folder: Path) -> AsyncIterator[tuple[Client, Tenant, Tenant]]:
    async with running_hub(folder, token="mh_the-hubs-own") as hub:
        tenants = [await project(hub, name) for name in ("one", "two")]
        for tenant in tenants:
            deployed = await tenant.call("POST", "/deployments", json=UPLOAD)
            assert deployed.status_code == 201, deployed.text
            tenant.machine = deployed.json()["machine"]["id"]
            await hub.http.post(f"/{tenant.machine}/s", json={"type": "increment"})
        yield hub, tenants[0], tenants[1]
        for tenant in tenants:
            await tenant.http.aclose()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def tenants(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[Client, Tenant, Tenant]]:
    async with two_tenants(tmp_path_factory.mktemp("tenants")) as made:
        yield made


ROUTES = [
    ("GET", "/machines/{m}", None),
    ("PATCH", "/machines/{m}", {"name": "renamed"}),
    ("GET", "/machines/{m}/versions", None),
    ("GET", "/machines/{m}/versions/1", None),
    ("GET", "/machines/{m}/versions/1/files", None),
    ("POST", "/machines/{m}/versions/1/activate", None),
    ("POST", "/machines/{m}/versions/prune", {"keep": 1}),
    ("GET", "/machines/{m}/sessions", None),
    ("GET", "/machines/{m}/sessions/s", None),
    ("GET", "/machines/{m}/sessions/s/journal", None),
    ("POST", "/machines/{m}/sessions/s/fork", {"session": "f"}),
    ("POST", "/machines/{m}/sessions/s/replay", None),
    ("POST", "/machines/{m}/sessions/s/restart", {}),
    ("DELETE", "/machines/{m}/sessions/s", None),
    ("GET", "/machines/{m}/logs", None),
    ("DELETE", "/machines/{m}", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
async def test_anothers_machine_is_not_there(
    tenants: tuple[Client, Tenant, Tenant], method: str, path: str, body: Any
) -> None:
    """The same status, headers and body as for one that nobody has, whatever is asked."""
    _, one, two = tenants
    answers = [
        await one.call(method, path.format(m=machine) + query, json=body)
        for machine in (two.machine, "Qq1Qq1Qq")
        for query in ("", "?project=two")
    ]
    seen = {
        (
            answer.status_code,
            tuple(
                sorted(
                    (k, v) for k, v in answer.headers.items() if k not in ("date", "content-length")
                )
            ),
            answer.text.replace(two.machine, "Qq1Qq1Qq"),
        )
        for answer in answers[0::2]
    }
    assert len(seen) == 1, seen
    problem(answers[0], 404, "no_such_machine")
    problem(answers[1], 404, "no_such_project")
    mine = await one.call("GET", f"/machines/{one.machine}")
    assert mine.json()["name"] == "same"


async def test_names_lists_and_counts_are_a_projects_own(
    tenants: tuple[Client, Tenant, Tenant],
) -> None:
    hub, one, two = tenants
    for tenant in (one, two):
        listed = (await tenant.call("GET", "/machines")).json()["data"]
        assert [each["id"] for each in listed] == [tenant.machine]
        assert (await tenant.call("GET", "/machines/same")).json()["id"] == tenant.machine
        busiest = (await tenant.call("GET", "/busiest")).json()["data"]
        assert {each["machine"]["id"] for each in busiest} == {tenant.machine}
        assert [
            each["name"] for each in (await tenant.call("GET", "/projects")).json()["data"]
        ] == ["one" if tenant is one else "two"]
        assert one.machine not in (metrics := (await tenant.http.get("/metrics")).text)
        assert two.machine not in metrics
    everything = (await hub.http.get("/api/v1/machines")).json()["data"]
    assert everything == []  # the default project's
    theirs = (await hub.http.get("/api/v1/machines?project=two")).json()["data"]
    assert [each["id"] for each in theirs] == [two.machine]
    assert (await hub.http.get(f"/api/v1/machines/{two.machine}")).json()["id"] == two.machine


async def test_what_another_built_is_built_again(tenants: tuple[Client, Tenant, Tenant]) -> None:
    """How long a deployment takes, and whether it was built, tells nobody about others' content."""
    _, one, two = tenants
    upload = UPLOAD | {"name": "secret", "files": {"c.ts": COUNTER + "\nexport const x = 1;"}}
    first = (await one.call("POST", "/deployments", json=upload)).json()
    theirs = (await two.call("POST", "/deployments", json=upload)).json()
    assert first["created"] is theirs["created"] is True
    assert theirs["timings_ms"]["bundle"] > 0
    again = (await two.call("POST", "/deployments", json=upload)).json()
    assert (again["created"], again["timings_ms"]["bundle"]) == (False, 0)


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("read", {"GET /machines", "GET /machines/same"}),
        ("deploy", {"POST /deployments"}),
        ("operate", {"DELETE /machines/same/sessions/nosuch"}),
        ("admin", {"GET /projects/one/tokens"}),
    ],
)
async def test_a_scope_allows_its_own_and_nothing_else(
    tenants: tuple[Client, Tenant, Tenant], scope: str, allowed: set[str]
) -> None:
    _, one, _ = tenants
    made = await one.call(
        "POST", "/projects/one/tokens", json={"name": f"only {scope}", "scopes": [scope]}
    )
    limited = Tenant(str(one.http.base_url), made.json()["token"])
    for call in (
        "GET /machines",
        "GET /machines/same",
        "POST /deployments",
        "DELETE /machines/same/sessions/nosuch",
        "GET /projects/one/tokens",
    ):
        method, path = call.split()
        body = UPLOAD if method == "POST" else None
        answer = await limited.call(method, path, json=body)
        if call in allowed:
            assert answer.status_code in (200, 201, 404), (call, answer.text)
        else:
            assert scope not in problem(answer, 403, "forbidden")["detail"]
    who = (await limited.call("GET", "/whoami")).json()
    assert who == {
        "standing": "token",
        "token": f"only {scope}",
        "project": {"id": one.project, "name": "one"},
        "scopes": [scope],
    }
    await limited.http.aclose()


async def test_a_project_is_not_the_hub(tenants: tuple[Client, Tenant, Tenant]) -> None:
    hub, one, two = tenants
    problem(await one.call("POST", "/projects", json={"name": "mine"}), 403, "forbidden")
    problem(await one.call("DELETE", "/projects/one"), 403, "forbidden")
    for path in (
        "/projects/two/tokens",
        f"/projects/{two.project}/tokens",
        "/projects/none/tokens",
    ):
        problem(await one.call("GET", path), 404, "no_such_project")
    token = (await two.call("GET", "/projects/two/tokens")).json()["data"][0]["id"]
    problem(await one.call("DELETE", f"/projects/one/tokens/{token}"), 404, "no_such_token")
    problem(await hub.http.delete("/api/v1/projects/one"), 409, "project_not_empty")
    problem(await hub.http.delete("/api/v1/projects/default"), 400, "invalid_project")
    problem(await hub.http.post("/api/v1/projects", json={"name": "one"}), 409, "name_taken")
    problem(await hub.http.post("/api/v1/projects", json={"name": "a b"}), 400, "invalid_name")
    for body, code in (
        ({"name": "t", "scopes": ALL}, "token_exists"),
        ({"name": "", "scopes": ALL}, "invalid_name"),
        ({"name": "x", "scopes": []}, "invalid_scopes"),
        ({"name": "x", "scopes": ["rule"]}, "invalid_body"),
        ({"name": "x", "scopes": ALL, "expires_in_s": 0}, "invalid_body"),
    ):
        answer = await one.call("POST", "/projects/one/tokens", json=body)
        problem(answer, 409 if code == "token_exists" else 400, code)


PROJECT_ROUTES = [
    ("GET", "/tokens", None),
    ("POST", "/tokens", {"name": "mine", "scopes": ["read"]}),
    ("DELETE", "/tokens/1", None),
    ("GET", "/keys", None),
    ("POST", "/keys", {"name": "mine"}),
    ("DELETE", "/keys/1", None),
    ("GET", "/jwt-keys", None),
    ("POST", "/jwt-keys", {"name": "mine"}),
    ("DELETE", "/jwt-keys/abc", None),
    ("GET", "/revocations", None),
    ("POST", "/revocations", {"sub": "ada"}),
    ("DELETE", "/revocations/1", None),
    ("GET", "/usage", None),
]


@pytest.mark.parametrize(("method", "path", "body"), PROJECT_ROUTES)
async def test_anothers_project_is_not_there(
    tenants: tuple[Client, Tenant, Tenant], method: str, path: str, body: Any
) -> None:
    _, one, two = tenants
    answers = [
        await one.call(method, f"/projects/{project}{path}", json=body)
        for project in (two.project, "Qq1Qq1Qq")
    ]
    for answer in answers:
        problem(answer, 404, "no_such_project")
    assert answers[0].text.replace(two.project, "Qq1Qq1Qq") == answers[1].text


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("GET", "/s", None),
        ("GET", "/s?at=1", None),
        ("POST", "/s", {"type": "increment"}),
        ("PUT", "/new", {}),
        ("GET", "/s/presence", None),
        ("PUT", "/s/presence", {"metadata": 1}),
        ("POST", "/s/wait", {"condition": "done", "timeout_ms": 0}),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_anothers_session_is_not_there(
    tenants: tuple[Client, Tenant, Tenant], method: str, path: str, body: Any, accept: str
) -> None:
    """Though the machine is public: for who comes with a token of another project."""
    _, one, two = tenants
    headers = {"Accept": accept, "Idempotency-Key": "k"}
    answers = [
        await one.http.request(method, f"/{machine}{path}", json=body, headers=headers)
        for machine in (two.machine, "Qq1Qq1Qq")
    ]
    problem(answers[0], 404, "no_such_machine")
    assert answers[0].text.replace(two.machine, "Qq1Qq1Qq") == answers[1].text
    protocols: Any = ["machinehub.v1", f"machinehub.token.{one.token}"]
    said = []
    for machine in (two.machine, "Qq1Qq1Qq"):
        url = f"{str(one.http.base_url).rstrip('/')}/{machine}/s".replace("http", "ws", 1)
        async with connect(url, subprotocols=protocols) as socket:
            frame = await socket.recv()
            with pytest.raises(ConnectionClosed) as closed:
                await socket.recv()
            assert closed.value.rcvd is not None
            said.append((str(frame).replace(machine, "-"), closed.value.rcvd.code))
    assert said[0] == said[1]
    assert said[0][1] == 4004


async def test_a_token_ends_and_is_seen(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, token="mh_the-hubs-own", clock=clock) as hub:
        tokens = "/api/v1/projects/default/tokens"
        body = {"name": "short", "scopes": ["read"], "expires_in_s": 60}
        made = (await hub.http.post(tokens, json=body)).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        assert (await hub.http.get("/api/v1/machines", headers=headers)).status_code == 200
        await hub.hub.tokens.refresh()
        (shown,) = (await hub.http.get(tokens)).json()["data"]
        assert shown["used_at"] == shown["created_at"]
        assert "token" not in shown
        clock.move_to(clock.now_ms() + 60_000)
        problem(await hub.http.get("/api/v1/machines", headers=headers), 401, "unauthorised")
        again = await hub.http.post(tokens, json=body)  # the name is free again
        assert again.status_code == 201


async def test_what_a_revoked_token_opened_is_closed(tmp_path: Path) -> None:
    """Sockets, streams of sessions, and of logs: within five seconds."""
    async with two_tenants(tmp_path) as (_, one, _two):
        made = (
            await one.call("POST", "/projects/one/tokens", json={"name": "leaked", "scopes": ALL})
        ).json()
        url = f"{one.http.base_url}/{one.machine}/s"
        protocols = ["machinehub.v1", f"machinehub.token.{made['token']}"]
        headers = {"Authorization": f"Bearer {made['token']}", "Accept": "text/event-stream"}

        async def read(path: str) -> str:
            async with one.http.stream("GET", path, headers=headers) as stream:
                return "".join([chunk async for chunk in stream.aiter_text()])

        streams = [
            asyncio.create_task(read(path))
            for path in (f"/{one.machine}/s", f"/api/v1/machines/{one.machine}/logs")
        ]
        async with (
            connect(url.replace("http", "ws", 1), subprotocols=protocols) as leaked,  # type: ignore[arg-type]
            connect(url.replace("http", "ws", 1), subprotocols=["machinehub.v1"]) as other,  # type: ignore[list-item]
        ):
            await leaked.recv()
            await other.recv()
            gone = await one.call("DELETE", f"/projects/one/tokens/{made['id']}")
            assert gone.status_code == 204
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await asyncio.wait_for(leaked.recv(), 60)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4001
            session, _ = await asyncio.wait_for(asyncio.gather(*streams), 60)
            assert '"code":"unauthorised"' in session
            await other.send('{"type":"ping"}')
            while json.loads(await other.recv())["type"] != "pong":
                pass
        problem(await one.http.get("/api/v1/machines", headers=headers), 401, "unauthorised")


async def test_guessing_tokens_is_slow(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, token="mh_the-hubs-own", clock=clock) as hub:
        codes = []
        for number in range(30):
            headers = {"Authorization": f"Bearer mh_{number}"}
            answer = await hub.http.get("/api/v1/machines", headers=headers)
            codes.append(answer.status_code)
        assert codes == [401] * 20 + [429] * 10
        assert (await hub.http.get("/api/v1/machines")).status_code == 200
        clock.move_to(clock.now_ms() + 10_000)
        headers = {"Authorization": "Bearer mh_again"}
        problem(await hub.http.get("/api/v1/machines", headers=headers), 401, "unauthorised")


async def test_what_an_older_hub_had_is_the_default_projects(tmp_path: Path) -> None:
    """Machines with their versions and sessions, and tokens with every scope."""
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(COUNTER)
        await send(hub, f"{machine}/s")
        await hub.hub.keys.add_token(name="t", token="mh_old", now_ms=1)
    make_older(tmp_path / "hub.db")
    async with running_hub(tmp_path, token="mh_the-hubs-own") as hub:
        headers = {"Authorization": "Bearer mh_old"}
        who = (await hub.http.get("/api/v1/whoami", headers=headers)).json()
        assert (who["project"]["name"], who["scopes"]) == ("default", ALL)
        listed = (await hub.http.get("/api/v1/machines", headers=headers)).json()["data"]
        assert [each["id"] for each in listed] == [machine]
        versions = await hub.http.get(f"/api/v1/machines/{machine}/versions", headers=headers)
        assert len(versions.json()["data"]) == 1
        assert (await send(hub, f"{machine}/s")).json()["seq"] == 3

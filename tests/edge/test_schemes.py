"""The three schemes of docs/access.md: the machines of examples/access, and the tokens for them."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

import pytest_asyncio

from tests.edge.test_connect_tokens import App
from tests.support import EXAMPLES, Client, problem, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def hub(tmp_path_factory: Any) -> AsyncIterator[Client]:
    async with running_hub(tmp_path_factory.mktemp("schemes"), token="mh_own") as running:
        yield running


async def scheme(hub: Client, name: str) -> App:
    folder = EXAMPLES / "access" / name
    config = tomllib.loads((folder / "machinehub.toml").read_text())
    project = "/api/v1/projects/default/jwt-keys"
    made = (await hub.http.post(project, json={"name": name})).json()
    upload = {
        "name": name,
        "entry": config["main"],
        "files": {config["main"]: (folder / config["main"]).read_text()},
        "private": config["private"],
        "access": config.get("access", []),
    }
    deployed = await hub.http.post("/api/v1/deployments", json=upload)
    assert deployed.status_code == 201, deployed.text
    return App(hub, made["kid"], made["secret"], deployed.json()["machine"]["id"])


async def post(app: App, token: str, session: str, **event: Any) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    return await app.hub.http.post(f"/{app.machine}/{session}", json=event, headers=headers)


async def test_a_session_is_a_users(hub: Client) -> None:
    cart = await scheme(hub, "cart")
    ada = cart.token("ada", session="user-ada")
    assert (await post(cart, ada, "user-ada", type="add", item="tea")).status_code == 200
    problem(await post(cart, ada, "user-bob", type="add", item="tea"), 403, "forbidden")
    bob = cart.token("bob", session="user-bob")
    problem(await cart.get(bob, session="user-ada"), 403, "forbidden")


async def test_a_session_is_a_groups(hub: Client) -> None:
    board = await scheme(hub, "board")
    ada, bob = (board.token(sub, session="team-7*") for sub in ("ada", "bob"))
    editor = board.token("eve", roles=["editor"], session=["team-7*", "team-8*"])
    session = "team-7-plan"
    assert (await post(board, ada, session, type="write", text="mine")).status_code == 200
    problem(await post(board, editor, session, type="approve"), 403, "forbidden")
    assert (await post(board, ada, session, type="submit")).status_code == 200
    problem(await post(board, bob, session, type="reopen"), 403, "forbidden")
    assert (await post(board, ada, session, type="reopen")).status_code == 200
    assert (await post(board, bob, session, type="submit")).status_code == 200
    problem(await post(board, bob, session, type="approve"), 403, "forbidden")
    approved = await post(board, editor, session, type="approve")
    assert approved.json()["snapshot"]["value"] == "published"
    problem(await post(board, ada, session, type="reopen"), 403, "forbidden")
    assert (await post(board, editor, session, type="reopen")).status_code == 200
    problem(await board.get(ada, session="team-8-plan"), 403, "forbidden")


async def test_members_are_in_the_context(hub: Client) -> None:
    cards = await scheme(hub, "cards")
    ada, bob, dealer = cards.token("ada"), cards.token("bob"), cards.token("eve", roles=["dealer"])
    problem(await post(cards, ada, "t", type="deal", to="ada", card="ace"), 403, "forbidden")
    for to, card in (("ada", "ace"), ("bob", "king"), ("ada", "queen")):
        dealt = await post(cards, dealer, "t", type="deal", to=to, card=card)
        assert "ace" not in dealt.text
    seen = (await cards.get(ada, session="t")).json()["snapshot"]["context"]
    assert seen == {
        "hand": ["ace", "queen"],
        "counts": {"ada": 2, "bob": 1},
        "table": [],
        "next": "ada",
    }
    problem(await post(cards, bob, "t", type="play", card="king"), 403, "forbidden")
    problem(await post(cards, ada, "t", type="play", card="king"), 403, "forbidden")
    played = await post(cards, ada, "t", type="play", card="ace")
    assert played.json()["snapshot"]["context"]["table"] == ["ace"]
    assert "queen" not in (await cards.get(bob, session="t")).text
    assert (await post(cards, bob, "t", type="play", card="king")).status_code == 200

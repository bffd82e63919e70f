"""Projects, logins and scoped tokens, from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.cli.test_cli import run
from tests.support import COUNTER, running_hub

if TYPE_CHECKING:
    from pathlib import Path


async def test_from_a_project_to_a_machine_in_it(tmp_path: Path) -> None:
    config: dict[str, Any] = {"MACHINEHUB_CONFIG": str(tmp_path / "config")}
    (tmp_path / "counter.ts").write_text(COUNTER)
    async with running_hub(tmp_path / "hub", token="mh_the-hubs-own") as client:
        url = client.url
        ruling: dict[str, Any] = {"MACHINEHUB_TOKEN": "mh_the-hubs-own"}
        made = await run("projects", "create", "shop", client=client, **ruling)
        assert made.returncode == 0, made.stderr
        added = await run(
            *("projects", "add-token", "shop", "--name", "ci", "--expires", "30d"),
            *("--scope", "deploy", "--scope", "read"),
            client=client,
            **ruling,
        )
        token = added.stdout.strip()
        assert token.startswith("mh_")
        logged_in = await run("login", "shop", "--server", url, "--token", token, **config)
        assert logged_in.returncode == 0, logged_in.stderr
        assert "project shop: deploy, read" in logged_in.stderr.replace("\n", " ")
        kept = tmp_path / "config" / "servers.json"
        assert kept.stat().st_mode & 0o777 == 0o600
        who = await run("whoami", "--server", "shop", **config)
        assert who.stdout == f"{url}: token ci for project shop: deploy, read\n"
        assert json.loads((await run("whoami", "--json", "--server", url, **config)).stdout)[
            "scopes"
        ] == ["deploy", "read"]
        deployed = await run(
            "deploy", str(tmp_path / "counter.ts"), "--public", "--server", "shop", **config
        )
        assert deployed.returncode == 0, deployed.stderr
        assert deployed.stdout.strip().startswith(url)
        sent = await run("send", "counter/s", "increment", "--server", "shop", **config)
        assert json.loads(sent.stdout)["context"]["count"] == 1
        refused = await run("delete", "counter", "--yes", "--server", "shop", **config)
        assert refused.returncode == 3
        assert "lacks the scope 'operate'" in refused.stderr
        # The whole hub's token sees each project's machines by its name.
        assert "counter" not in (await run("list", client=client, **ruling)).stdout
        theirs = await run("list", client=client, **ruling, MACHINEHUB_PROJECT="shop")
        assert "counter" in theirs.stdout
        wrong = await run("list", client=client, **ruling, MACHINEHUB_PROJECT="none")
        assert wrong.returncode == 4
        listed = json.loads(
            (await run("projects", "tokens", "shop", "--json", client=client, **ruling)).stdout
        )
        assert [each["name"] for each in listed] == ["ci"]
        number = str(listed[0]["id"])
        revoked = await run("projects", "revoke-token", "shop", number, client=client, **ruling)
        assert revoked.returncode == 0
        assert (await run("list", "--server", "shop", **config)).returncode == 3
        assert "shop" in (await run("projects", client=client, **ruling)).stdout
        assert (await run("logout", "shop", **config)).returncode == 0
        assert (await run("logout", "shop", **config)).returncode == 4
        assert "mh_" not in kept.read_text()


async def test_a_login_needs_a_token_that_is_one(tmp_path: Path) -> None:
    config: dict[str, Any] = {"MACHINEHUB_CONFIG": str(tmp_path / "config")}
    async with running_hub(tmp_path / "hub", token="mh_the-hubs-own") as client:
        wrong = await run("login", "x", "--server", client.url, "--token", "mh_wrong", **config)
        assert wrong.returncode == 3
        assert "does not take this token" in wrong.stderr
        assert not (tmp_path / "config" / "servers.json").exists()
        assert (await run("login", "x", "--server", "hub.example", **config)).returncode == 2


async def test_tokens_beside_the_hub_have_scopes_and_an_end(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    made = await run(
        *("tokens", "create", "--name", "ci", "--scope", "deploy", "--expires", "12h"), *data
    )
    assert made.returncode == 0, made.stderr
    await run("tokens", "create", "--name", "root", "--hub", *data)
    listed = json.loads((await run("tokens", "list", "--json", *data)).stdout)
    assert [(each["name"], each["project"], each["scopes"]) for each in listed] == [
        ("ci", "default", ["deploy"]),
        ("root", None, ["deploy", "read", "operate", "admin"]),
    ]
    shown = (await run("tokens", "list", *data)).stdout
    assert "(the hub)" in shown
    assert "until 20" in shown
    for wrong in (
        ("--scope", "rule"),
        ("--expires", "soon"),
        ("--expires", "0d"),
    ):
        assert (await run("tokens", "create", *wrong, *data)).returncode == 2
    assert (await run("tokens", "create", "--project", "none", *data)).returncode == 4

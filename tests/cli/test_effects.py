"""Requests and secrets from the command line, and what a person sees of them."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from tests.cli.test_cli import logged_dev, run
from tests.effects.test_broker import FETCHER, came, deployed, send
from tests.effects.world import world
from tests.support import running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_requests_are_listed_and_settled(tmp_path: Path) -> None:
    async with (
        world() as there,
        running_hub(tmp_path, workers=1, egress_networks="127.0.0.0/8") as client,
    ):
        machine = await deployed(client, tries=2)
        url = there.url + "/wait"
        none = await run("effects", "fetcher/none", client=client)
        assert none.returncode == 4
        await send(client, machine, "s", {"type": "nothing"})
        empty = await run("effects", "fetcher/s", client=client)
        assert "asked nothing" in empty.stdout
        await send(client, machine, "s", {"type": "fetch", "url": url})
        await until(lambda: there.under_way)
        waits = await run("effects", "fetcher/s", client=client)
        assert f"GET {url}" in waits.stdout
        assert "pending" in waits.stdout
        for wrong in ("no json", "[1]"):
            refused = await run("effects", "fetcher/s", "--answer", "1", client=client, stdin=wrong)
            assert refused.returncode in (1, 2)
        answered = await run(
            *("effects", "fetcher/s", "--answer", "1"), client=client, stdin='{"json": {"a": 1}}'
        )
        assert answered.returncode == 0, answered.stderr
        await came(client, machine, "s")
        await send(client, machine, "s", {"type": "fetch", "url": url})
        await until(lambda: len(there.seen) == 2)
        assert (await run("effects", "fetcher/s", "--cancel", "2", client=client)).returncode == 0
        assert (await run("effects", "fetcher/s", "--cancel", "2", client=client)).returncode == 4
        await came(client, machine, "s", 2)
        listed = json.loads((await run("effects", "fetcher/s", "--json", client=client)).stdout)
        assert [each["outcome"] for each in listed] == ["request_cancelled", "answered_by_hand"]
        past = (await run("history", "fetcher/s", client=client)).stdout
        assert f"asks 1: GET {url}" in past
        assert "answer 1: 200 in" in past
        assert "answer 2: request_cancelled" in past
        forked = await run(*("fork", "fetcher/s", "f", "--at", "3"), client=client)
        assert forked.returncode == 0, forked.stderr
        held = await run("effects", "fetcher/f", client=client)
        assert "not sent: the session is a fork" in held.stdout


async def test_secrets_come_from_stdin_alone(tmp_path: Path) -> None:
    """What they are is in no argument, which other users of the computer could read, and in nothing
    that is printed.
    """
    async with running_hub(tmp_path, workers=1) as client:
        set_ = ("secrets", "set", "KEY", "--host", "api.example.com", "--host", "*.b.example")
        done = await run(*set_, client=client, stdin="sk_live_123\n")
        assert done.returncode == 0, done.stderr
        kept = await client.hub.secrets.reveal("default", ["KEY"])  # type: ignore[arg-type]
        assert kept["KEY"].value == "sk_live_123"
        assert (await run("secrets", "set", "KEY", "value", client=client)).returncode == 2
        assert (await run("secrets", "set", "a b", client=client, stdin="x")).returncode == 1
        (tmp_path / "hook").write_text("whsec_x\n")
        file = ("secrets", "set", "HOOK", "--file", str(tmp_path / "hook"))
        assert (await run(*file, client=client)).returncode == 0
        listed = await run("secrets", client=client)
        assert "api.example.com *.b.example" in listed.stdout
        rotated = await run("secrets", "rotate-key", client=client)
        assert "2 secrets are sealed" in rotated.stderr
        found = json.loads((await run("secrets", "list", "--json", client=client)).stdout)
        assert [each["name"] for each in found] == ["HOOK", "KEY"]
        assert (await run("secrets", "delete", "HOOK", client=client)).returncode == 0
        assert (await run("secrets", "delete", "HOOK", client=client)).returncode == 4
        for said in (done, listed, rotated):
            assert "sk_live_123" not in said.stdout + said.stderr


async def test_a_project_bounds_its_machines(tmp_path: Path) -> None:
    async with (
        world() as there,
        running_hub(tmp_path, workers=1, egress_networks="127.0.0.0/8") as client,
    ):
        machine = await deployed(client)
        limit = ("projects", "limit", "default")
        bounded = await run(*limit, "egress=a.example,*.b.example", client=client)
        assert bounded.returncode == 0, bounded.stderr
        wrong = await run(*limit, "egress=a b", client=client)
        assert wrong.returncode != 0
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/echo"})
        [why] = (await came(client, machine, "s"))["why"]
        assert "not allowed here" in why
        assert (await run(*limit, "egress=none", client=client)).returncode == 0
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/echo"})
        found: dict[str, Any] = await came(client, machine, "s", 2)
        assert found["got"][0]["status"] == 200


async def test_what_the_hub_lets_out_bounds_all(tmp_path: Path) -> None:
    settings = {"egress_networks": "127.0.0.0/8", "egress_allow": "api.example.com"}
    async with world() as there, running_hub(tmp_path, workers=1, **settings) as client:  # type: ignore[arg-type]
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/echo"})
        [why] = (await came(client, machine, "s"))["why"]
        assert "not allowed here" in why


async def test_dev_answers_from_a_file_and_prints_each_call(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "m.ts").write_text(FETCHER)
    (tmp_path / "machinehub.toml").write_text('[egress]\nallow = ["api.example.com"]\n')
    mocks = tmp_path / "answers.json"
    for wrong in (
        "no json",
        '[{"status": 200}]',
        '[{"url": "x", "status": 42}]',
        '[{"url": "x", "headers": {"a b": "c"}}]',
    ):
        mocks.write_text(wrong)
        refused = await run("dev", "m.ts", "--mock", "answers.json", cwd=tmp_path)
        assert (refused.returncode, "answers.json" in refused.stderr) == (2, True)
    assert (await run("dev", "m.ts", "--mock", "none.json", cwd=tmp_path)).returncode == 2
    answer = {"url": "https://api.example.com/*", "status": 201, "json": {"id": 7}}
    mocks.write_text(json.dumps([{**answer, "method": "POST"}, {"url": "*/bad", "error": "away"}]))
    async with logged_dev("m.ts", "--mock", "answers.json", cwd=tmp_path) as (hub_url, log):
        await until(lambda: "m: version 1 in" in log.read_text())
        server: dict[str, Any] = {"MACHINEHUB_SERVER": hub_url}
        url = "https://api.example.com/charges"
        init = {"method": "POST", "body": "x"}
        event = json.dumps({"type": "fetch", "url": url, "init": init})
        assert (await run("send", "m/s", event, **server)).returncode == 0
        await until(lambda: f"s: POST {url} -> 201, 8 bytes in" in log.read_text())
        for path, said in (("bad", "egress_failed"), ("other", "egress_failed")):
            event = json.dumps({"type": "fetch", "url": f"https://api.example.com/{path}"})
            await run("send", f"m/{path}", event, **server)
            await until(functools.partial(said_of, log, f"{path} -> {said}"))
        assert '"id":7' in (await run("history", "m/s", "--json", **server)).stdout.replace(
            '\\"', '"'
        )


def said_of(log: Path, text: str) -> bool:
    return text in log.read_text()

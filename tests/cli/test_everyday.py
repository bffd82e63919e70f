"""What a developer types all day: sending as somebody, typos, sessions that go, tokens by name."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING

from tests.cli.test_cli import logged_dev, run
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

WHO = """import { assign, createMachine } from "xstate";
export default createMachine({ context: { who: [] }, on: { HI: { actions: assign({ who: ({ context, event }) => [...context.who, event.sender.id] }) } } });"""


async def test_an_event_that_nothing_takes_is_said(client: Client) -> None:
    await client.deploy(COUNTER, name="untaken")
    sent = await run("send", "untaken/s1", "incremnt", client=client)
    assert sent.returncode == 0
    assert json.loads(sent.stdout)["context"] == {"count": 0}
    assert sent.stderr == "nothing takes this event here; it takes: decrement, increment\n", (
        sent.stderr
    )
    strict = await run("send", "untaken/s1", "incremnt", "--strict", client=client)
    assert strict.returncode == 1
    taken = await run("send", "untaken/s1", "increment", "--strict", client=client)
    assert (taken.returncode, taken.stderr) == (0, "")


async def test_a_user_is_one_participant_and_another_by_name(
    client: Client, tmp_path: Path
) -> None:
    await client.deploy(WHO, name="who")
    config = str(tmp_path / "config")
    for extra in ([], [], ["--as", "anna"], ["--as", "anna"], ["--as", "ben"]):
        sent = await run("send", "who/s", "HI", *extra, client=client, MACHINEHUB_CONFIG=config)
        assert sent.returncode == 0, sent.stderr
    me, again, anna, anna_again, ben = json.loads(sent.stdout)["context"]["who"]
    assert me == again
    assert anna == anna_again
    assert len({me, anna, ben}) == 3
    key = tmp_path / "config" / "client-key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    history = await run("history", "who/s", client=client)
    assert history.stdout.count(f"from {anna}") == 2
    key.unlink()
    key.mkdir()
    sent = await run("send", "who/s", "HI", client=client, MACHINEHUB_CONFIG=config)
    assert sent.returncode == 0, "a key that cannot be kept counts once"


async def test_sessions_are_started_anew_and_deleted(client: Client) -> None:
    await client.deploy(COUNTER, name="going")
    for name in ("a", "b", "c"):
        await run("send", f"going/{name}", "increment", client=client)
    await client.deploy(COUNTER + "// two", name="going")
    anew = await run("restart", "going/a", client=client)
    assert anew.stderr == "a: started anew on version 2\n"
    assert json.loads(anew.stdout)["context"] == {"count": 0}
    assert "version 1" in (await run("restart", "going@1/a", client=client)).stderr
    assert (await run("restart", "going@x/a", client=client)).returncode == 2
    assert (await run("restart", "going/none", client=client)).returncode == 4
    one = await run("sessions", "going/a", "--json", client=client)
    assert json.loads(one.stdout)["id"] == "a"
    assert (await run("sessions", "going", "--delete", client=client)).returncode == 2
    deleted = await run("sessions", "going/a", "--delete", "--yes", client=client)
    assert deleted.stderr == "1 session deleted\n"
    assert (await run("sessions", "going", "--delete", "--yes", client=client)).stderr == (
        "2 sessions deleted\n"
    )
    assert (await run("sessions", "going", client=client)).stdout.splitlines() == [
        "SESSION  VERSION  SEQ  CONNECTIONS  FINISHED"
    ]


async def test_a_session_called_like_a_way_up_is_a_session(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="dots")
    for name in ("%2E%2E", "%2E", "keep"):
        assert (await client.http.put(f"/{machine}/{name}", json={})).status_code == 201
    assert (
        json.loads((await run("sessions", "dots/..", "--json", client=client)).stdout)["id"] == ".."
    )
    assert (await run("restart", "dots/..", client=client)).returncode == 0
    assert (await run("sessions", "dots/..", "--delete", "--yes", client=client)).returncode == 0
    listed = json.loads((await run("sessions", "dots", "--json", client=client)).stdout)
    assert [each["id"] for each in listed] == [".", "keep"]
    assert (await run("sessions", "dots", "--delete", "--yes", client=client)).returncode == 0
    assert (await run("info", "dots", client=client)).returncode == 0, "the machine is there"


async def test_who_has_no_token_hears_that_names_need_one(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="secret") as client:
        machine = await client.deploy(COUNTER, name="named")
        sent = await run("send", "named/s", "increment", client=client)
        assert sent.returncode == 3
        assert "'named' is no machine's id" in sent.stderr
        assert (await run("send", f"{machine}/s", "increment", client=client)).returncode == 0
        history = await run("history", "named/s", client=client)
        assert history.returncode == 3, history.stderr
        sent = await run("send", "named/s", "x", client=client, MACHINEHUB_TOKEN="secret")
        assert sent.returncode == 0


async def test_tokens_have_names(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    assert (await run("tokens", "create", "--name", "ci", *data)).returncode == 0
    twice = await run("tokens", "create", "--name", "ci", *data)
    assert twice.returncode == 5
    assert "there is a token named 'ci'" in twice.stderr
    for _ in range(2):
        assert (await run("tokens", "create", *data)).returncode == 0, "those without a name"
    revoked = await run("tokens", "revoke", "ci", *data)
    assert (revoked.returncode, revoked.stderr) == (0, "token ci: revoked\n")
    assert (await run("tokens", "create", "--name", "ci", *data)).returncode == 0, "free again"
    assert (await run("tokens", "create", "--name", "7", *data)).returncode == 0
    await run("tokens", "revoke", "7", *data)
    listed = json.loads((await run("tokens", "list", "--json", *data)).stdout)
    assert [(each["name"], each["revoked"]) for each in listed] == [
        ("ci", True),
        ("", False),
        ("", False),
        ("ci", False),
        ("7", True),
    ]
    assert (await run("tokens", "revoke", "2", *data)).returncode == 0, "by its number"
    assert (await run("tokens", "revoke", "nobody", *data)).returncode == 4
    assert (await run("tokens", "revoke", "9" * 30, *data)).returncode == 4


async def test_doctor_as_json(tmp_path: Path) -> None:
    checked = await run("doctor", "--json", "--data", str(tmp_path))
    checks = {each["check"]: each for each in json.loads(checked.stdout)}
    assert checks["python"]["state"] == "ok"
    assert set(checks["hub"]) == {"check", "state", "detail"}


async def test_check_sends_no_presence_and_takes_warnings_for_errors(tmp_path: Path) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ on: { "presence.joined": {}, GO: { actions: "typo" } } });"""
    (tmp_path / "m.ts").write_text(source)
    checked = await run("check", "m.ts", "--budget", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "warning: m.ts:2:80: no action 'typo' is implemented" in checked.stderr
    costs = [line.split()[0] for line in checked.stdout.split("EVENT", 1)[1].splitlines()[1:]]
    assert costs == ["(start)", "GO"]
    assert (await run("check", "m.ts", "--strict", cwd=tmp_path)).returncode == 6


async def test_deploy_takes_warnings_for_errors(client: Client, tmp_path: Path) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ on: { GO: { actions: "typo" } } });"""
    (tmp_path / "strict.ts").write_text(source)
    refused = await run("deploy", "strict.ts", "--strict", client=client, cwd=tmp_path)
    assert refused.returncode == 6
    assert "strict.ts:2:57: no action 'typo' is implemented" in refused.stderr
    loose = await run("deploy", "strict.ts", client=client, cwd=tmp_path)
    assert loose.returncode == 0
    assert "warning: strict.ts:2:57" in loose.stderr


async def test_logs_have_dates(client: Client) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ entry: () => console.log("hello") });"""
    machine = await client.deploy(source, name="dated")
    await client.http.get(f"/{machine}/s")
    line = (await run("logs", "dated", client=client)).stdout
    entry = (await client.http.get("/api/v1/machines/dated/logs")).json()["data"][0]
    assert entry["text"] == "hello"
    assert line[:11].count("-") == 2, line


async def test_a_put_with_unknown_members_is_refused(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="puts")
    refused = await client.http.put(f"/{machine}/s", json={"inptu": {"n": 1}})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_body")
    assert "inptu" in refused.json()["detail"]


async def test_dev_tries_again_and_says_what_goes_wrong(tmp_path: Path) -> None:
    """What was missing is installed, the configuration changes, an event is rejected."""
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / "m.ts").write_text(
        'import { createMachine } from "xstate"; import { one } from "late";\n'
        "export default createMachine({ context: { one }, on: { BAD: { actions: () => { throw new "
        'Error("no good"); } } } });'
    )
    async with logged_dev("m.ts", cwd=tmp_path) as (url, log):
        await until(lambda: "Could not resolve" in log.read_text())
        package = tmp_path / "node_modules" / "late"
        package.mkdir(parents=True)
        (package / "package.json").write_text('{"name": "late", "main": "./i.js"}')
        (package / "i.js").write_text("exports.one = 1;")
        (tmp_path / "package.json").write_text('{"dependencies": {"late": "1"}}')
        await until(lambda: "m: version 1 in" in log.read_text())
        server = {"MACHINEHUB_SERVER": url}
        assert f"export {'='.join(*server.items())}" in log.read_text()
        await run("send", "m/s", "BAD", **server)  # type: ignore[arg-type]
        await until(lambda: "s: machine_error: no good" in log.read_text())
        (tmp_path / "machinehub.toml").write_text('nme = "x"')
        await until(lambda: "which means nothing" in log.read_text())
        (tmp_path / "machinehub.toml").write_text('name = "other"')
        await until(lambda: "other: version 1 in" in log.read_text())

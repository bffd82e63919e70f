"""The command line as a user types it: output, streams, exit codes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import lzma
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import sqlalchemy as sa

from machinehub.cli.main import app
from machinehub.ids import SessionId
from tests.processes import deploy, hub_process
from tests.support import CACHE, COUNTER, EXAMPLES, ROOT, Client, free_port, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

COMMAND = [str(Path(sys.executable).parent / "machinehub")]


def environment(**more: str) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("MACHINEHUB_")}
    return clean | {"MACHINEHUB_CACHE": str(CACHE), "COLUMNS": "200", "TERM": "dumb"} | more


async def run(
    *arguments: str,
    client: Client | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    **more: str,
) -> subprocess.CompletedProcess[str]:
    server = {"MACHINEHUB_SERVER": client.url} if client else {}
    return await asyncio.to_thread(
        subprocess.run,
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(**server, **more),
        cwd=cwd,
        input=stdin,
    )


async def test_from_a_file_to_a_live_url(client: Client, tmp_path: Path) -> None:
    (tmp_path / "counter.ts").write_text(COUNTER)
    deployed = await run(
        "deploy", "counter.ts", "--name", "cli", "-m", "first", client=client, cwd=tmp_path
    )
    assert deployed.returncode == 0, deployed.stderr
    url = deployed.stdout.splitlines()[-1]
    assert re.fullmatch(rf"{client.url}/[A-Za-z0-9]{{6,}}", url)
    assert "version 1" in deployed.stderr
    again = await run(
        "deploy", "counter.ts", "--name", "cli", "--json", client=client, cwd=tmp_path
    )
    assert json.loads(again.stdout)["created"] is False
    sent = await run("send", "cli/s1", '{"type":"increment"}', client=client)
    assert json.loads(sent.stdout)["context"] == {"count": 1}
    assert (
        json.loads((await run("send", "cli/s1", "increment", "--json", client=client)).stdout)[
            "seq"
        ]
        == 3
    )
    assert url in (await run("list", client=client)).stdout
    assert "1        yes" in (await run("versions", "cli", client=client)).stdout
    assert "first" in (await run("versions", "cli", client=client)).stdout
    assert url in (await run("info", "cli", client=client)).stdout
    assert "s1" in (await run("sessions", "cli", client=client)).stdout
    (tmp_path / "counter.ts").write_text(COUNTER + "\n// changed\n")
    await run("deploy", "counter.ts", "--name", "cli", client=client, cwd=tmp_path)
    assert (await run("rollback", "cli", client=client)).returncode == 0
    assert (
        json.loads((await run("info", "cli", "--json", client=client)).stdout)["active_version"]
        == 1
    )
    assert (await run("rollback", "cli", client=client)).returncode == 5
    assert (await run("activate", "cli", "2", client=client)).returncode == 0
    assert (await run("delete", "cli", client=client)).returncode == 2
    assert (await run("delete", "cli", "--yes", client=client)).returncode == 0
    assert (await run("info", "cli", client=client)).returncode == 4


async def test_watch_shows_what_send_does(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="watched")
    watching = await asyncio.create_subprocess_exec(
        *COMMAND,
        "watch",
        f"{machine}/s",
        env=environment(MACHINEHUB_SERVER=client.url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert watching.stdout is not None
    assert b'{"count": 0}' in await asyncio.wait_for(watching.stdout.readline(), 60)
    await run("send", "watched/s", "increment", client=client)
    assert b'{"count": 1}' in await asyncio.wait_for(watching.stdout.readline(), 60)
    watching.terminate()
    await watching.communicate()


async def test_imports_and_npm_packages_are_uploaded(client: Client, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text("{}")
    package = tmp_path / "node_modules" / "@acme" / "words"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "@acme/words", "main": "./lib.js"}')
    (package / "lib.js").write_text("exports.word = 'from npm';")
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "util.ts").write_text("export const own: string = 'own';")
    (tmp_path / "src" / "m.ts").write_text(
        'import { createMachine } from "xstate"; import { word } from "@acme/words"; import { own '
        '} from "./util"; export default createMachine({ context: { word, own } });'
    )
    deployed = await run("deploy", "src/m.ts", "--name", "npm", client=client, cwd=tmp_path)
    assert deployed.returncode == 0, deployed.stderr
    files = (await client.http.get("/api/v1/machines/npm/versions/1/files")).json()["files"]
    assert set(files) == {
        "src/m.ts",
        "src/util.ts",
        "node_modules/@acme/words/package.json",
        "node_modules/@acme/words/lib.js",
    }
    sent = await run("send", "npm/s", "x", client=client)
    assert json.loads(sent.stdout)["context"] == {"word": "from npm", "own": "own"}


async def test_check_builds_without_a_hub(tmp_path: Path) -> None:
    checked = await run(
        "check", str(EXAMPLES / "traffic-light.ts"), MACHINEHUB_SERVER="http://127.0.0.1:1"
    )
    assert checked.returncode == 0, checked.stderr
    assert "green (initial)" in checked.stdout
    assert "events: FAULT, REPAIRED" in checked.stdout
    (tmp_path / "bad.ts").write_text(
        "import { createMachine } from 'xstate';\nexport default createMachine({ initial: 'a', "
        "states: { a: { };"
    )
    bad = await run("check", "bad.ts", cwd=tmp_path)
    assert bad.returncode == 6
    assert "bad.ts:2:" in bad.stderr
    assert bad.stdout == ""


async def test_exit_codes(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bad.ts").write_text("export const nothing = 1;")
    (tmp_path / "loop.ts").write_text(
        "import { createMachine } from 'xstate'; export default createMachine({ on: { LOOP: { "
        "actions: () => { for (;;); } } } });"
    )
    assert (await run("deploy", "bad.ts", client=client, cwd=tmp_path)).returncode == 6
    assert (await run("deploy", "none.ts", client=client, cwd=tmp_path)).returncode == 2
    assert (await run("deploy", client=client, cwd=tmp_path)).returncode == 2
    assert (await run("nonsense", client=client)).returncode == 2
    assert (await run("send", "noslash", "x", client=client)).returncode == 2
    assert (await run("send", "nope/s", "x", client=client)).returncode == 4
    assert (await run("watch", "Nope00/s", client=client)).returncode == 4
    assert (await run("deploy", "loop.ts", client=client, cwd=tmp_path)).returncode == 0
    rejected = await run("send", "loop/s", "LOOP", client=client)
    assert (rejected.returncode, "cpu_exceeded" in rejected.stderr) == (1, True)
    alone = await run("list", MACHINEHUB_SERVER="http://127.0.0.1:1")
    assert alone.returncode == 1
    assert "machinehub serve" in alone.stderr
    assert (await run("list", MACHINEHUB_SERVER="nonsense")).returncode in (1, 2)


async def test_a_hub_that_is_not_there_or_goes_away_is_said(tmp_path: Path) -> None:
    away = await run("logs", "m", "-f", MACHINEHUB_SERVER="http://127.0.0.1:1")
    assert (away.returncode, away.stderr.startswith("error: no hub answers")) == (1, True)
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ on: { SAY: { '
        'actions: () => console.log("said") } } });'
    )
    async with hub_process(tmp_path) as hub, httpx.AsyncClient() as http:
        url = await deploy(hub.url, source)
        await http.post(f"{url}/s", json={"type": "SAY"})
        following = await asyncio.create_subprocess_exec(
            *(*COMMAND, "logs", url.rsplit("/", 1)[1], "-f"),
            env=environment(MACHINEHUB_SERVER=hub.url, PYTHONUNBUFFERED="1"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await line_with(following.stdout, "said")
        hub.process.kill()
        _, lost = await following.communicate()
    assert (following.returncode, lost.decode().startswith("error: http://127.0.0.1:")) == (1, True)


async def test_config_file_names_the_machine(client: Client, tmp_path: Path) -> None:
    (tmp_path / "machinehub.toml").write_text('name = "configured"\nmain = "src/m.ts"\n')
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "m.ts").write_text(COUNTER)
    assert (await run("deploy", client=client, cwd=tmp_path)).returncode == 0
    assert (await client.http.get("/api/v1/machines/configured")).status_code == 200
    (tmp_path / "machinehub.toml").write_text("name = [")
    assert (await run("deploy", client=client, cwd=tmp_path)).returncode == 2


async def test_tokens(tmp_path: Path) -> None:
    created = await run("tokens", "create", "--name", "ci", "--data", str(tmp_path))
    token = created.stdout.strip()
    assert token.startswith("mh_")
    async with running_hub(tmp_path, workers=1) as client:
        assert (await run("list", client=client)).returncode == 3
        assert (await run("list", client=client, MACHINEHUB_TOKEN=token)).returncode == 0
        assert "ci" in (await run("tokens", "list", "--data", str(tmp_path))).stdout
        noted = (await run("audit", "--json", client=client, MACHINEHUB_TOKEN=token)).stdout
        assert [each["what"] for each in json.loads(noted)] == ["created token 'ci'"]
        assert (await run("tokens", "revoke", "1", "--data", str(tmp_path))).returncode == 0
        assert (await run("tokens", "revoke", "9", "--data", str(tmp_path))).returncode == 4
    assert "schema 0012 -> 0012" in (await run("db", "upgrade", "--data", str(tmp_path))).stderr


async def test_doctor(tmp_path: Path) -> None:
    checked = await run("doctor", "--data", str(tmp_path), MACHINEHUB_SERVER="http://127.0.0.1:1")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert re.search(r"sandbox +ok", checked.stdout)
    kinds = {line.split(":")[0] for line in checked.stdout.splitlines() if ": system calls" in line}
    assert kinds == {"session worker", "module worker", "forge"}
    assert re.search(
        r"walls +ok +(\d+) of \1 stand" if os.geteuid() == 0 else r"walls +ok", checked.stdout
    )
    assert "error" not in checked.stderr
    (tmp_path / "file").write_text("")
    broken = await run(
        "doctor", "--data", str(tmp_path / "file"), MACHINEHUB_SERVER="http://127.0.0.1:1"
    )
    assert broken.returncode == 1


async def test_commands_that_only_look_leave_the_database_as_it_is(tmp_path: Path) -> None:
    """A hub of another version may be using it."""
    file = tmp_path / "hub.db"
    old = lzma.decompress((ROOT / "tests/recorded/main-2026-11.sqlite.xz").read_bytes())
    for content, revision in ((None, None), (old, "0003")):
        if content is not None:
            file.write_bytes(content)
        for command in ("doctor",), ("tokens", "list"):
            looked = await run(
                *command, "--data", str(tmp_path), MACHINEHUB_SERVER="http://127.0.0.1:1"
            )
            is_older = command[0] == "tokens" and revision is not None
            assert looked.returncode == int(is_older), looked.stdout + looked.stderr
            assert not is_older or "schema 0003" in looked.stderr
        assert file.exists() == (content is not None)
        if revision is not None:
            with contextlib.closing(sqlite3.connect(file)) as database:
                found = database.execute("SELECT version_num FROM alembic_version").fetchone()
            assert found == (revision,)


@contextlib.asynccontextmanager
async def dev(*arguments: str, cwd: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """`machinehub dev` in a folder, which ends well when it is told to."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        "dev",
        *arguments,
        "--port",
        str(free_port()),
        env=environment(),
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


@contextlib.asynccontextmanager
async def logged_dev(*arguments: str, cwd: Path) -> AsyncIterator[tuple[str, Path]]:
    """The same while it writes into a file beside the folder: its URL, and that file."""
    port = free_port()
    log = cwd.parent / "dev.log"
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "dev", *arguments, "--port", str(port)),
            cwd=cwd,
            env=environment(),
            stdout=output,
            stderr=output,
        )
    try:
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        await process.communicate()


async def line_with(stream: asyncio.StreamReader | None, text: str) -> str:
    assert stream is not None
    while text not in (line := (await asyncio.wait_for(stream.readline(), 30)).decode()):
        assert line, f"no line with {text!r}"
    return line


async def test_dev_deploys_again_on_save(tmp_path: Path) -> None:
    file = tmp_path / "counter.ts"
    file.write_text(COUNTER)
    async with dev("counter.ts", cwd=tmp_path) as process:
        first = await line_with(process.stdout, "http://")
        file.write_text(COUNTER + "\nbroken(")
        await line_with(process.stderr, "counter.ts:")
        file.write_text(COUNTER + "\n// again")
        assert await line_with(process.stdout, "http://") == first
        await line_with(process.stderr, "version 2")


async def test_dev_deploys_a_machine_of_several_files(tmp_path: Path) -> None:
    """The hub's own forge must not read the user's folder; what looks into it is the command's."""
    (tmp_path / "machinehub.toml").write_text("[limits]\ntimers = 7\n")
    helper, package = tmp_path / "start.ts", tmp_path / "node_modules" / "far"
    package.mkdir(parents=True)
    (package / "package.json").write_text('{"name": "far", "main": "./far.js"}')
    (package / "far.js").write_text("exports.far = 1000;")
    helper.write_text("export const start: number = 5;")
    (tmp_path / "m.ts").write_text(
        """
        import { createMachine } from "xstate";
        import { far } from "far";
        import { start } from "./start";
        export default createMachine({ context: { at: start + far } });
        """
    )
    async with dev("m.ts", cwd=tmp_path) as process, httpx.AsyncClient() as http:
        url = (await line_with(process.stdout, "http://")).strip()
        assert (await http.get(f"{url}/s1")).json()["snapshot"]["context"] == {"at": 1005}
        limits = (await http.get(url)).json()["definition"]["limits"]
        assert limits == {"timers": 7}
        helper.write_text("export const start: number = ;")
        await line_with(process.stderr, "start.ts:1:")
        helper.write_text("export const start: number = 6;")
        await line_with(process.stderr, "version 2")
        assert (await http.get(f"{url}/s2")).json()["snapshot"]["context"] == {"at": 1006}
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"machinehub.toml", "start.ts", "m.ts", "node_modules", ".machinehub"}


def test_every_command_has_help() -> None:
    from typer.main import get_command

    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    promised = {
        "serve",
        "dev",
        "deploy",
        "check",
        "list",
        "info",
        "versions",
        "activate",
        "rollback",
        "delete",
        "send",
        "watch",
        "open",
        "tokens",
        "doctor",
        "db",
    }
    assert promised <= names


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_shell_completion(shell: str) -> None:
    # The shell that is asked for, not the one that started the tests.
    shown = await run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert shown.returncode == 0
    assert "machinehub" in shown.stdout or "_MACHINEHUB_COMPLETE" in shown.stdout.upper()


async def test_the_past_of_a_session(client: Client) -> None:
    await client.deploy(COUNTER, name="past")
    for _ in range(4):
        await run("send", "past/s", "increment", client=client)
    await run("send", "past/s", '{"type":"increment","by":"\\u001b[31m"}', client=client)
    history = (await run("history", "past/s", client=client)).stdout.splitlines()
    assert [line.split()[0] for line in history] == ["1", "2", "3", "4", "5", "6"]
    assert history[0].endswith("start")
    assert '{"type": "increment"}' in history[1]
    assert "\x1b" not in history[5]
    assert (
        len(
            [
                json.loads(line)
                for line in (
                    await run("history", "past/s", "--json", client=client)
                ).stdout.splitlines()
            ]
        )
        == 6
    )
    short = await run("history", "past/s", "--limit", "2", client=client)
    assert (len(short.stdout.splitlines()), "and more" in short.stderr) == (2, True)
    replayed = await run("replay", "past/s", "--at", "3", "--verify", client=client)
    assert (replayed.returncode, json.loads(replayed.stdout)["context"]) == (0, {"count": 2})
    assert "nothing was stored yet" in replayed.stderr
    assert (
        "agrees with 1 checkpoint"
        in (await run("replay", "past/s", "--verify", client=client)).stderr
    )
    forked = await run("fork", "past/s", "older", "--at", "3", client=client)
    assert forked.stdout.strip().endswith("/older")
    assert json.loads((await run("send", "past/older", "increment", client=client)).stdout)[
        "context"
    ] == {"count": 3}
    assert (await run("fork", "past/s", "older", client=client)).returncode == 5
    assert (await run("replay", "past/s", "--at", "99", client=client)).returncode == 4
    assert (await run("history", "past/none", client=client)).returncode == 4
    assert (await run("history", "past", client=client)).returncode == 2
    machine = (await client.http.get("/api/v1/machines/past")).json()["id"]
    damage = {
        "key": (await client.hub.session_store.record(machine, SessionId("s"))).key,
        "input": b'[1,7,{"type":"decrement"},{"id":"x"}]',
    }
    async with client.hub.engine.begin() as connection:
        await connection.execute(
            sa.text("UPDATE journal SET input = :input WHERE seq = 2 AND key = :key"), damage
        )
    assert (await run("replay", "past/s", "--verify", client=client)).returncode == 6


async def test_what_strangers_wrote_does_nothing_to_a_terminal(
    client: Client, tmp_path: Path
) -> None:
    (tmp_path / "m.ts").write_text(
        'import { createMachine } from "xstate"; export default createMachine({ id: "\\u001b[2J", '
        'on: { X: { actions: () => { console.log("\\u001b]0;owned\\u0007\\u202eno\\r\\nyes '
        '[red]x[/red]"); throw new Error("\\u001b[31m"); } } } });'
    )
    deployed = await run("deploy", "m.ts", "--name", "terminal", client=client, cwd=tmp_path)
    assert deployed.returncode == 0, deployed.stderr
    sent = await run("send", "terminal/s", "X", client=client)
    shown = [
        await run("logs", "terminal", client=client),
        await run("check", "m.ts", cwd=tmp_path),
        await run("history", "terminal/s", client=client),
    ]
    text = sent.stderr + "".join(each.stdout + each.stderr for each in shown)
    assert "machine_error" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e", "\r"}


async def test_numbers_that_are_too_much_for_python_or_for_floats(client: Client) -> None:
    """One such event, and the history could never be shown again."""
    machine = await client.deploy(COUNTER, name="cli-numbers")
    for number in ("9" * 5000, "1e400", "-1e999"):
        sent = await client.http.post(
            f"/{machine}/s", content=b'{"type":"increment","x":%b}' % number.encode()
        )
        assert sent.status_code == 200
    history = await run("history", "cli-numbers/s", "--json", client=client)
    assert history.returncode == 0, history.stderr
    shown = [line for line in history.stdout.splitlines() if line]
    assert "9" * 5000 in shown[1]
    assert all("Infinity" not in line for line in shown)
    assert (await run("history", "cli-numbers/s", client=client)).returncode == 0
    assert (
        await run("send", "cli-numbers/s", '{"type":"a","x":1e400}', client=client)
    ).returncode == 2
    assert (await run("send", "cli-numbers/s", '{"type":1}', client=client)).returncode == 1
    assert (await run("fork", "cli-numbers/s", "", client=client)).returncode == 2
    assert (await run("replay", "cli-numbers/s", "--at", "9" * 20, client=client)).returncode == 2


async def test_what_an_error_does_is_in_the_config_file(client: Client, tmp_path: Path) -> None:
    (tmp_path / "machinehub.toml").write_text(
        'name = "stopper"\nmain = "m.ts"\n[machine]\non_error = "stop"\n'
    )
    (tmp_path / "m.ts").write_text(
        'import { createMachine } from "xstate"; export default createMachine({ on: { BOOM: { '
        'actions: () => { throw new Error("boom"); } } } });'
    )
    assert (await run("deploy", client=client, cwd=tmp_path)).returncode == 0
    assert (
        json.loads((await run("send", "stopper/s", "BOOM", client=client)).stdout)["status"]
        == "error"
    )
    for wrong in ('transitions = "magic"', 'on_error = "explode"', "on_eror = 1", "on_error = 3"):
        (tmp_path / "machinehub.toml").write_text(
            f'name = "stopper"\nmain = "m.ts"\n[machine]\n{wrong}\n'
        )
        assert (await run("deploy", client=client, cwd=tmp_path)).returncode == 2

"""Keys, connect tokens, revocations and the audit, from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.cli.test_cli import run
from tests.support import COUNTER, running_hub

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
name = "guarded"
main = "counter.ts"
private = true

[[access]]
events = ["increment"]
roles = ["player"]
"""


async def test_from_a_key_to_a_refused_event(tmp_path: Path) -> None:
    (tmp_path / "counter.ts").write_text(COUNTER)
    (tmp_path / "machinehub.toml").write_text(CONFIG)
    async with running_hub(tmp_path / "hub", token="mh_own") as hub:
        own: dict[str, Any] = {"client": hub, "MACHINEHUB_TOKEN": "mh_own"}
        deployed = await run("deploy", str(tmp_path / "counter.ts"), **own)
        assert deployed.returncode == 0, deployed.stderr
        assert "private" in deployed.stderr
        assert "sessions    private" in (await run("info", "guarded", **own)).stdout
        machine = deployed.stdout.strip().rsplit("/", 1)[-1]
        made = json.loads((await run("jwt-keys", "create", "app", "--json", **own)).stdout)
        sign = ("connect-token", "--kid", made["kid"], "--sub", "ada")
        secret: dict[str, Any] = {"MACHINEHUB_JWT_SECRET": made["secret"]}
        player = (await run(*sign, "--role", "player", **secret)).stdout.strip()
        visitor = (await run(*sign, "--session", "s*", **secret)).stdout.strip()
        sent = await run("send", f"{machine}/s", "increment", "--token", player, client=hub)
        assert json.loads(sent.stdout)["context"]["count"] == 1, sent.stderr
        refused = await run("send", f"{machine}/s", "increment", "--token", visitor, client=hub)
        assert refused.returncode == 3
        assert "may not send this event" in refused.stderr.replace("\n", " ")
        key = (await run("keys", "create", "site", "--origin", "https://a.example", **own)).stdout
        assert key.startswith("mhp_")
        assert key.strip() in (await run("keys", **own)).stdout.replace("\n", "")
        assert (await run("keys", "revoke", "2", **own)).returncode in (0, 4)
        assert made["kid"] in (await run("jwt-keys", **own)).stdout
        revoked = await run("revocations", "add", "--sub", "ada", **own)
        assert revoked.returncode == 0, revoked.stderr
        listed = json.loads((await run("revocations", "--json", **own)).stdout)
        assert [each["sub"] for each in listed] == ["ada"]
        ended = await run("send", f"{machine}/s", "increment", "--token", player, client=hub)
        assert ended.returncode == 3
        assert (await run("revocations", "remove", "1", **own)).returncode == 0
        session = ("--session", f"{machine}/s")
        assert (await run("revocations", "add", *session, **own)).returncode == 0
        assert (await run("revocations", "add", **own)).returncode == 2
        assert (await run("set", "guarded", "--public", **own)).returncode == 0
        assert (await run("jwt-keys", "revoke", made["kid"], **own)).returncode == 0
        lines = (await run("audit", "--limit", "3", **own)).stdout
        assert "revoked jwt key 'app'" in lines
        assert "made guarded" in lines


async def test_what_a_file_says_wrongly(tmp_path: Path) -> None:
    (tmp_path / "counter.ts").write_text(COUNTER)
    for text, said in (
        ("private = 1", "`private` in machinehub.toml is true or false"),
        ('[[access]]\nevent = ["a"]', "[access] in machinehub.toml"),
        ('[access]\nevents = ["a"]', "[access] in machinehub.toml"),
    ):
        (tmp_path / "machinehub.toml").write_text(text)
        checked = await run("check", str(tmp_path / "counter.ts"))
        assert checked.returncode == 2
        assert said in checked.stderr.replace("\n", " ")

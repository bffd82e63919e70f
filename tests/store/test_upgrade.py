"""Databases that earlier code wrote are read, replayed and carried on with; what a newer hub wrote
is refused.

The recordings, and how they were made, are in `tests/recorded`.
"""

from __future__ import annotations

import json
import lzma
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from machinehub.errors import Unavailable
from machinehub.settings import normalise_database_url
from machinehub.store.engine import open_engine
from machinehub.store.schema import current_revision, migrate, newest_revision
from machinehub.store.tables import formats, journal
from tests.databases import postgres_program
from tests.durable import hub_on
from tests.support import ROOT, Client, problem

pytestmark = pytest.mark.xdist_group("store")

RECORDED: Final = ROOT / "tests" / "recorded"
GOES_ON: Final = {"crowd", "waiting", "t1"}
"""Sessions that have a turn of their own accord: a client left, or a timer is due by now."""


def _restore(recording: str, database_url: str) -> None:
    """Fills an empty database with a recording of its kind."""
    if database_url.startswith("sqlite"):
        packed = (RECORDED / f"{recording}.sqlite.xz").read_bytes()
        Path(database_url.removeprefix("sqlite:///")).write_bytes(lzma.decompress(packed))
    else:
        dump = lzma.decompress((RECORDED / f"{recording}.postgres.sql.xz").read_bytes())
        psql = str(postgres_program("psql"))
        command = [psql, "--quiet", "--set", "ON_ERROR_STOP=1", "--dbname", database_url]
        subprocess.run(command, input=dump, check=True, capture_output=True)


@pytest.fixture(params=sorted(path.stem for path in RECORDED.glob("*.json")))
def recording(request: pytest.FixtureRequest, database_url: str) -> dict[str, Any]:
    """What clients were told of the sessions in `database_url` by the hub that wrote it."""
    _restore(request.param, database_url)
    told = json.loads((RECORDED / f"{request.param}.json").read_bytes())
    answer: dict[str, Any] = told["sqlite" if database_url.startswith("sqlite") else "postgres"]
    return answer


async def _session(client: Client, machine: str, session: str) -> dict[str, Any]:
    answer = await client.http.get(f"/api/v1/machines/{machine}/sessions/{session}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_what_earlier_code_wrote_reads_and_replays_the_same(
    recording: dict[str, Any], database_url: str, tmp_path: Path
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        for place, told in recording["sessions"].items():
            machine, session = place.split("/")
            at = f"/api/v1/machines/{machine}/sessions/{session}"
            lines = (await client.http.get(f"{at}/journal?limit=500")).json()["data"]
            assert lines[: len(told["journal"])] == told["journal"], place
            replay = (await client.http.post(f"{at}/replay?at={told['seq']}")).json()
            assert (replay["digest"], replay["verified"]) == (told["digest"], True), place
            if session not in GOES_ON:
                found = await _session(client, machine, session)
                for name in ("seq", "finished", "snapshot"):
                    assert found[name] == told[name], place


async def test_sessions_of_earlier_code_are_carried_on_with(
    recording: dict[str, Any], database_url: str, tmp_path: Path
) -> None:
    room, turnstile = recording["machines"]["room"], recording["machines"]["turnstile"]
    event = {room: "increment", turnstile: "COIN"}
    after: dict[str, dict[str, Any]] = {}
    async with hub_on(database_url, tmp_path) as client:
        for place, told in recording["sessions"].items():
            machine, session = place.split("/")
            sent = {"type": event[machine]}
            answer = await client.http.post(
                f"/{place}", json=sent, headers={"Idempotency-Key": "after-the-upgrade"}
            )
            if told["finished"]:
                problem(answer, 409, "session_finished")
            else:
                assert answer.status_code == 200, answer.text
                assert answer.json()["seq"] > told["seq"]
            after[place] = await _session(client, machine, session)
        # Journal lines are never written again, so those of before and after stand side by side.
        fork = {"at": 5, "session": "another-fork"}
        await client.http.post(f"/api/v1/machines/{room}/sessions/busy/fork", json=fork)
        forked = await _session(client, room, "another-fork")
        assert forked["snapshot"] == recording["sessions"][f"{room}/fork"]["snapshot"]
    async with hub_on(database_url, tmp_path) as client:
        for place, found in after.items():
            machine, session = place.split("/")
            assert await _session(client, machine, session) == found | {"live": False}, place
            at = f"/api/v1/machines/{machine}/sessions/{session}"
            replayed = (await client.http.post(f"{at}/replay")).json()
            assert replayed["snapshot"] == found["snapshot"], place
        # An event that was accepted before the upgrade is known by its id, and not taken twice.
        told = recording["sessions"][f"{room}/busy"]
        first = next(line for line in told["journal"] if line.get("id") == "increment-0")
        again = await client.http.post(
            f"/{room}/busy", json=first["event"], headers={"Idempotency-Key": "increment-0"}
        )
        assert (again.status_code, again.json()["seq"]) == (200, first["seq"])


async def test_the_schema_is_upgraded_and_the_formats_noted(
    recording: dict[str, Any], database_url: str
) -> None:
    assert recording
    engine = open_engine(normalise_database_url(database_url))
    try:
        assert await migrate(engine) == "0003"
        assert await current_revision(engine) == newest_revision()
        async with engine.connect() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(formats)) == 4
            written = set(await connection.scalars(sa.select(journal.c.format)))
            assert written == {1}
    finally:
        await engine.dispose()


# --- what a newer hub wrote


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE alembic_version SET version_num = '9999'", "schema 9999"),
        ("UPDATE formats SET version = 99 WHERE name = 'checkpoint'", "checkpoint 99"),
        ("INSERT INTO formats (name, version) VALUES ('effects', 1)", "effects 1"),
    ],
)
async def test_a_database_of_a_newer_hub_is_refused_and_left_alone(
    statement: str, says: str, database_url: str, tmp_path: Path
) -> None:
    engine = open_engine(normalise_database_url(database_url))
    try:
        await migrate(engine)
        async with engine.begin() as connection:
            await connection.execute(sa.text(statement))
        before = await current_revision(engine)
        with pytest.raises(Unavailable, match=says):
            async with hub_on(database_url, tmp_path):
                pass
        assert await current_revision(engine) == before
    finally:
        await engine.dispose()

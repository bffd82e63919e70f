"""Metrics as Prometheus means them, and the page about them."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.test_cli import run
from tests.durable import send
from tests.metrics_page import PAGE, page
from tests.support import COUNTER, ROOT, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client


async def scraped(client: Client) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    text = (await client.http.get("/metrics")).text
    return {
        family.name: {
            (("name", sample.name), *sorted(sample.labels.items())): sample.value
            for sample in family.samples
        }
        for family in text_string_to_metric_families(text)
    }


def total(samples: dict[tuple[tuple[str, str], ...], float], suffix: str) -> float:
    return sum(value for key, value in samples.items() if key[0][1].endswith(suffix))


def test_the_page_says_what_the_code_declares() -> None:
    assert PAGE.read_text() == page(), "python -m tests.metrics_page"


async def test_a_turn_is_measured(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        for _ in range(10):
            await send(client, f"{machine}/s")
        await client.http.post(f"/{machine}/s", json={"type": "no good"})
        found = await scraped(client)
    assert total(found["machinehub_turns"], "_total") >= 11
    for name in ("turn_seconds", "turn_guest_seconds", "turn_queue_seconds"):
        samples = found[f"machinehub_{name}"]
        assert total(samples, "_count") >= 11
        assert 0 < total(samples, "_sum") < 60
        buckets = [value for key, value in samples.items() if key[0][1].endswith("_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == total(samples, "_count")
    assert total(found["machinehub_commit_lines"], "_sum") >= 11
    assert total(found["machinehub_deploy_seconds"], "_count") == 1
    assert total(found["machinehub_stored_sessions"], "sessions") == 1
    posts = [
        value
        for key, value in found["machinehub_http_request_seconds"].items()
        if ("what", "machine") in key and key[0][1].endswith("_count")
    ]
    assert sum(posts) >= 11
    assert [dict(key)["version"] for key in found["machinehub_build_info"]] == ["0.1.0"]
    memory = {
        dict(key)["kind"]: each for key, each in found["machinehub_worker_memory_bytes"].items()
    }
    assert memory.keys() == {"session", "forge"}
    assert min(memory.values()) > 2**20


async def test_why_a_worker_ended_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_hub(tmp_path) as client:
        (worker,) = client.hub.pool.workers
        assert worker.process is not None
        os.kill(worker.process.pid, signal.SIGKILL)

        async def is_counted() -> bool:
            found = (await scraped(client))["machinehub_worker_restarts"]
            return any({("kind", "session"), ("reason", "killed")} <= {*key} for key in found)

        await until(is_counted)
    assert any("killed" in record.message for record in caplog.records)


async def test_the_busiest_sessions_are_named_to_those_who_may_know(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_busy") as client:
        machine = await client.deploy(COUNTER, name="counted")
        for name, count in (("a", 3), ("b", 7)):
            for _ in range(count):
                await send(client, f"{machine}/{name}")
        listed = await run("sessions", "--busiest", client=client, MACHINEHUB_TOKEN="mh_busy")
        assert re.findall(r"counted/(\w) +(\d+)", listed.stdout) == [("b", "8"), ("a", "4")]
        as_json = await run(
            "sessions", "--busiest", "--json", client=client, MACHINEHUB_TOKEN="mh_busy"
        )
        assert json.loads(as_json.stdout)[0]["session"] == "b"
        assert (await run("sessions", client=client)).returncode == 2
        found = (await scraped(client))["machinehub_busiest_session_turns"]
        assert {dict(key)["session"]: value for key, value in found.items()} == {"a": 4, "b": 8}
        async with httpx.AsyncClient(base_url=client.url) as stranger:
            text = (await stranger.get("/metrics")).text
            assert "machinehub_turns_total" in text
            assert machine not in text


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("file", ["alerts.yaml", "dashboard.json"])
def test_what_is_asked_of_prometheus_is_there(file: str) -> None:
    known = set()
    for name, kind in re.findall(r"^\| `(\w+)` \| (\w+)", page(), re.MULTILINE):
        known |= (
            {f"{name}_{part}" for part in ("bucket", "sum", "count")}
            if kind == "histogram"
            else {name}
        )
    asked = set(re.findall(r"machinehub_\w+", (ROOT / "deploy" / file).read_text()))
    assert asked
    assert asked <= known


def test_each_alert_is_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "operations.md").read_text()
    for rule in rules():
        assert rule["alert"] in runbook
        assert rule["annotations"]["summary"]

"""The files that start a cluster elsewhere: by their schemas, and by what they tell the hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import kubernetes_validate
import pytest
import yaml

from machinehub.settings import from_environment
from tests.support import ROOT

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = ROOT / "deploy" / "kubernetes"
OPERATORS = {"ServiceMonitor", "Kustomization"}
"""Whose schemas are not Kubernetes' own."""


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_kubernetes_takes_it(path: Path) -> None:
    for each in documents(path):
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, "1.33", strict=True)


def test_kustomize_has_every_file() -> None:
    (kustomization,) = documents(FOLDER / "kustomization.yaml")
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == files


def test_a_pod_is_drained_before_it_is_killed() -> None:
    stateful = documents(FOLDER / "nodes.yaml")[0]["spec"]["template"]["spec"]
    (container,) = stateful["containers"]
    env = {each["name"]: each.get("value", "postgresql://x/y") for each in container["env"]}
    env["MACHINEHUB_NATS_URL"] = "nats://nats:4222"
    env["MACHINEHUB_PUBLIC_URL"] = "https://hub.example"
    settings = from_environment(env)
    pause_s = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert stateful["terminationGracePeriodSeconds"] > pause_s + settings.drain_s + 20
    monitored = documents(FOLDER / "monitor.yaml")[0]["spec"]
    services = [each for each in documents(FOLDER / "nodes.yaml") if each["kind"] == "Service"]
    chosen = [each for each in services if each["metadata"].get("labels") == {"app": "machinehub"}]
    assert monitored["selector"]["matchLabels"] == {"app": "machinehub"}
    assert [port["name"] for each in chosen for port in each["spec"]["ports"]] == ["http"]


def test_compose_starts_three_nodes() -> None:
    (compose,) = documents(ROOT / "compose.cluster.yaml")
    services = compose["services"]
    nodes = [name for name, service in services.items() if service.get("build") == "."]
    assert nodes == ["node1", "node2", "node3"]
    for name in nodes:
        given = services[name]["environment"]
        env = {key: value if "${" not in value else "http://x" for key, value in given.items()}
        settings = from_environment(env)
        assert settings.nats_url.startswith("nats://")
        grace_s = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace_s > settings.drain_s + 20
    nginx = (ROOT / "deploy" / "nginx.cluster.conf").read_text()
    assert all(f"server {name}:8787" in nginx for name in nodes)
    volumes = {each.split(":")[0] for each in services["balancer"]["volumes"]}
    assert all((ROOT / each).exists() for each in volumes)

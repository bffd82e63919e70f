"""NATS with TLS and a password; what subjects say; whom a node believes."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import nats
import pytest

from machinehub.errors import Unavailable
from tests.cluster.clusters import nats_server, node_of
from tests.cluster.test_nodes import session_at
from tests.databases import new_database
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from nats.aio.msg import Msg

pytestmark = pytest.mark.xdist_group("cluster")


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed one for 127.0.0.1, and its key."""
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    subprocess.run(
        [*command, *names, "-keyout", key, "-out", cert], check=True, capture_output=True
    )
    return cert, key


async def test_nodes_over_tls_with_a_password(postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    cert, key = certificate(tmp_path)
    secure = ("--tls", "--tlscert", cert, "--tlskey", key, "--user", "hub", "--pass", "secret")
    async with nats_server(*secure) as server:
        good = f"tls://hub:secret@127.0.0.1:{server.port}"
        for url, ca in (
            (f"tls://hub:wrong@127.0.0.1:{server.port}", cert),
            (f"tls://127.0.0.1:{server.port}", cert),
            (good, ""),  # signed by nobody whom the system trusts
        ):
            with pytest.raises(Unavailable, match="NATS"):
                async with running_hub(
                    tmp_path / "x", database_url=database, nats_url=url, nats_ca=ca
                ):
                    pass
        settings: dict[str, Any] = {"database_url": database, "nats_url": good, "nats_ca": cert}
        async with (
            running_hub(tmp_path / "a", **settings) as one,
            running_hub(tmp_path / "b", **settings) as two,
        ):
            nodes = [one, two]
            await until(lambda: all(len(node_of(each).membership.nodes) == 2 for each in nodes))
            trust = ssl.create_default_context(cafile=cert)
            spy = await nats.connect(good, tls=trust)
            subjects: set[str] = set()

            async def note(message: Msg) -> None:
                subjects.add(message.subject)

            await spy.subscribe(">", cb=note)
            await spy.flush()
            machine = await one.deploy(COUNTER, name="secret-machine")
            session = session_at(nodes, machine, 1)
            async with one.socket(f"{machine}/{session}") as socket:
                await socket.receive()
                await socket.event("increment")
            ids = {f"machinehub.{node_of(each).node}" for each in nodes}
            await until(lambda: subjects >= ids)
            # The server tells of itself when it likes: here, that somebody had a wrong password.
            others = {each for each in subjects if not each.startswith(("_INBOX", "$SYS"))}
            assert others <= ids | {"machinehub.all"}
            # Somebody who is no node, though on the same NATS, is not heard.
            before = node_of(two)._serving.count
            packets = [b"D" + b"x" * 12 + b"l" * 12 + bytes([0, 0, 0, 1, 0]) + b"\x90"]
            packets += [bytes(size) for size in (0, 1, 29, 30, 31)]
            for packet in packets:
                await spy.publish(f"machinehub.{node_of(two).node}", packet)
                await spy.publish("machinehub.all", packet)
            await spy.flush()
            await spy.close()
            answer = await one.http.get(f"/{machine}/{session}")
            assert answer.json()["snapshot"]["context"]["count"] == 1
            assert node_of(two)._serving.count <= before
            await asyncio.sleep(0)

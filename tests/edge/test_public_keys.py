"""Keys that issuers publish: what one project chose does not hold up another's."""

from __future__ import annotations

import asyncio
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from machinehub.clock import SystemClock
from machinehub.edge.public_keys import PublicKeys
from machinehub.egress.client import Egress
from machinehub.egress.connections import LOOKUPS_OF_ONE
from tests.edge.test_connect_tokens import published
from tests.support import until


async def test_a_project_whose_names_never_come_keeps_no_other_from_the_same_keys() -> None:
    never = asyncio.Event()
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        if host != "keys.example":
            await never.wait()
        return ["127.0.0.1"]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = json.dumps({"keys": [published(Ed25519PrivateKey.generate(), "ed")]}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://keys.example:{server.sockets[0].getsockname()[1]}/keys"
    egress = Egress(["127.0.0.0/8"], resolve=resolve)
    keys = PublicKeys(egress, SystemClock())
    async with server:
        hanging = [
            asyncio.ensure_future(keys.find(f"http://{number}.example/", "ed", owner="hostile"))
            for number in range(LOOKUPS_OF_ONE)
        ]
        await until(lambda: len(asked) == LOOKUPS_OF_ONE)
        waiting = asyncio.ensure_future(keys.find(url, "ed", owner="hostile"))
        assert await keys.find(url, "ed", owner="victim") is not None
        assert keys.at_hand(url, "ed", owner="victim") is not None
        assert asked[LOOKUPS_OF_ONE:] == ["keys.example"]
        never.set()
        await asyncio.gather(*hanging, waiting)
        keys.stop()
        await egress.close()

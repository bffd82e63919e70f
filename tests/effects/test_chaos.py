"""The shop of examples/shop, whose hub, workers and database are killed all the time: each order is
charged once, and none waits for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import sys
from typing import TYPE_CHECKING, Any

import httpx
import trustme

from tests.effects.test_hooks import KEY as HOOK_KEY
from tests.processes import Postgres
from tests.support import ROOT, free_port, until
from tests.test_chaos import KILLS, Chaos, until_alive

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

EXAMPLE = ROOT / "examples" / "shop"
PAY_KEY = "pay_live_under_fire"
ORDERS_PER_KILL = 6


def certify(folder: Path) -> str:
    """Makes the service's certificate, and says whom to believe."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(str(folder / "pay.key"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "pay.crt"))
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    return str(folder / "ca.pem")


@contextlib.asynccontextmanager
async def payment_service(folder: Path, port: int, hook: str) -> AsyncIterator[None]:
    """The example's own, which knows idempotency keys as long as it lives."""
    script = (EXAMPLE / "service.py").read_text().replace("4242", str(port))
    (folder / "service.py").write_text(script)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "service.py",
        hook,
        cwd=folder,
        env={"PAY_KEY": PAY_KEY, "PAY_HOOK": HOOK_KEY},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        await process.wait()


async def deploy_shop(url: str, port: int) -> str:
    """The machine's URL."""
    import tomllib

    source = (EXAMPLE / "order.ts").read_text().replace("4242", str(port))
    config = tomllib.loads((EXAMPLE / "machinehub.toml").read_text().replace("4242", str(port)))
    egress = config["egress"] | {"per_second": 200, "in_flight": 50, "tries": 20, "within_s": 600}
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        for name, value, hosts in (("PAY_KEY", PAY_KEY, ["127.0.0.1"]), ("PAY_HOOK", HOOK_KEY, [])):
            body: dict[str, Any] = {"value": value, "hosts": hosts}
            answer = await http.put(f"/api/v1/projects/default/secrets/{name}", json=body)
            assert answer.status_code == 200, answer.text
        upload = {
            "name": "order",
            "entry": "order.ts",
            "files": {"order.ts": source},
            "egress": egress,
            "webhooks": config["webhooks"],
        }
        answer = await http.post("/api/v1/deployments", json=upload)
        assert answer.status_code == 201, answer.text
        found: str = answer.json()["machine"]["url"]
        return found


async def pay(url: str, order: str) -> None:
    """Until the hub says that it has the event."""
    event = {"type": "PAY", "order": order, "cents": 100}
    async with httpx.AsyncClient(timeout=8) as http:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.post(
                    f"{url}/{order}", json=event, headers={"Idempotency-Key": f"pay-{order}"}
                )
                if answer.status_code == 200:
                    return
                assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)


async def chaos(folder: Path, postgres: Postgres | None) -> None:
    folder.mkdir()
    world = Chaos(
        folder,
        postgres,
        MACHINEHUB_EGRESS_NETWORKS="127.0.0.0/8",
        MACHINEHUB_EGRESS_CA=certify(folder),
    )
    port = free_port()
    try:
        await world.start()
        await until_alive(world)
        url = await deploy_shop(f"http://127.0.0.1:{world.port}", port)
        async with payment_service(folder, port, f"{url}/-/hooks/pay"):
            await under_fire(world, url, port)
    finally:
        await world.kill_hub()


async def under_fire(world: Chaos, url: str, port: int) -> None:
    orders: list[str] = []
    paying: list[asyncio.Task[None]] = []
    for _ in range(KILLS):
        for _ in range(ORDERS_PER_KILL):
            orders.append(f"o{len(orders)}")
            paying.append(asyncio.create_task(pay(url, orders[-1])))
        await asyncio.sleep(world.chance.random() * 0.4)
        await world.kill_something()
        if world.chance.random() < 0.5:
            await until_alive(world)
    await until_alive(world)
    await asyncio.wait_for(asyncio.gather(*paying), 90)

    async def all_are_paid() -> bool:
        async with httpx.AsyncClient(timeout=20) as http:
            found = [(await http.get(f"{url}/{order}")).json() for order in orders]
        return all(each["snapshot"]["value"] == "paid" for each in found)

    await until(all_are_paid, within_s=120)
    believed = ssl.create_default_context(cafile=str(world.folder / "ca.pem"))
    async with httpx.AsyncClient(verify=believed) as http:
        charged = (await http.get(f"https://127.0.0.1:{port}/")).json()
    assert charged == dict.fromkeys(orders, 1)
    await nothing_waits(url, orders)
    print(f"\n{world.killed}, {len(orders)} orders")


async def nothing_waits(url: str, orders: list[str]) -> None:
    base, machine = url.rsplit("/", 1)
    async with httpx.AsyncClient(timeout=20) as http:
        for order in orders:
            at = f"{base}/api/v1/machines/{machine}/sessions/{order}/effects"
            states = [each["state"] for each in json.loads((await http.get(at)).text)["data"]]
            assert states == ["ended"], order


async def test_orders_are_charged_once_on_sqlite(tmp_path: Path) -> None:
    await chaos(tmp_path / "hub", None)


async def test_orders_are_charged_once_on_postgres(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path)
    try:
        await chaos(tmp_path / "hub", postgres)
    finally:
        postgres.stop()

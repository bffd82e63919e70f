"""Behind nginx and Caddy, configured as in deploy/: TLS, WebSockets, streams, addresses, a base path;
and what an nginx that nobody configured does to an open hub.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import ssl
import subprocess
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from playwright.async_api import expect
from websockets.asyncio.client import connect

from machinehub.limits import Limits
from tests.browser import chromium
from tests.cli.test_cli import run
from tests.support import COUNTER, ROOT, free_port, problem, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support import Client

TOKEN = "mh_proxied"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {server}
}}
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """For localhost: certificate and key."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


@contextlib.asynccontextmanager
async def proxy(*command: str, port: int) -> AsyncIterator[None]:
    program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/sbin")
    assert program, f"the hub is tested behind {command[0]}: apt-get install {command[0]}"
    running = await asyncio.create_subprocess_exec(program, *command[1:])
    try:

        async def listens() -> bool:
            assert running.returncode is None, f"{command[0]} ended"
            try:
                (await asyncio.open_connection("127.0.0.1", port))[1].close()
            except OSError:
                return False
            return True

        await until(listens)
        yield
    finally:
        if running.returncode is None:
            running.terminate()
            await running.wait()


def nginx(folder: Path, server: str, *, port: int) -> contextlib.AbstractAsyncContextManager[None]:
    configuration = folder / "nginx.conf"
    folder.chmod(0o755)
    configuration.write_text(NGINX.format(folder=folder, server=server))
    return proxy("nginx", "-p", str(folder), "-c", str(configuration), port=port)


def example(name: str, *, port: int, hub: int, certificate: tuple[Path, Path]) -> str:
    """A file of deploy/, with this test's ports and certificate."""
    text = (ROOT / "deploy" / name).read_text()
    for said, here in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("server_name hub.example", "server_name localhost"),
        ("/etc/ssl/certs/hub.example.pem", str(certificate[0])),
        ("/etc/ssl/private/hub.example.key", str(certificate[1])),
        ("hub.example {", f"localhost:{port} {{\n\ttls {certificate[0]} {certificate[1]}"),
        ("127.0.0.1:8787", f"127.0.0.1:{hub}"),
    ):
        text = text.replace(said, here)
    return text


class Proxied:
    """A hub behind a proxy, as its clients see it."""

    def __init__(self, client: Client, url: str, certificate: Path) -> None:
        self.client = client
        self.url = url
        self.certificate = certificate
        self.trust = ssl.create_default_context(cafile=str(certificate))
        self.http = httpx.AsyncClient(verify=self.trust, timeout=30)


@contextlib.asynccontextmanager
async def proxied(
    folder: Path,
    program: str,
    certificate: tuple[Path, Path],
    *,
    path: str = "",
    strips: bool = False,
    **options: Any,
) -> AsyncIterator[Proxied]:
    """`strips`: the proxy takes the path off."""
    port, hub = free_port(), free_port()
    url = f"https://localhost:{port}{path}"
    text = example(
        "nginx.conf" if program == "nginx" else "Caddyfile",
        port=port,
        hub=hub,
        certificate=certificate,
    )
    if path:
        text = text.replace("location / {", f"location {path}/ {{")
    if strips:
        text = text.replace("proxy_pass http://hub;", "proxy_pass http://hub/;", 1)
    options = {"token": TOKEN, "public_url": url} | options
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(running_hub(folder / "hub", port=hub, **options))
        if program == "nginx":
            await stack.enter_async_context(nginx(folder, text, port=port))
        else:
            (folder / "Caddyfile").write_text("{\n\tadmin off\n\tauto_https off\n}\n" + text)
            command = ("caddy", "run", "--adapter", "caddyfile", "--config")
            await stack.enter_async_context(proxy(*command, str(folder / "Caddyfile"), port=port))
        behind = Proxied(client, url, certificate[0])
        stack.push_async_callback(behind.http.aclose)
        yield behind


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=["nginx", "caddy"])
async def behind(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    certificate: tuple[Path, Path],
) -> AsyncIterator[Proxied]:
    folder = tmp_path_factory.mktemp(request.param)
    async with proxied(folder, request.param, certificate) as found:
        yield found


async def deploy(behind: Proxied) -> str:
    """The machine's URL, as the hub says it."""
    body = {"name": "proxied", "entry": "c.ts", "files": {"c.ts": COUNTER}, "private": False}
    answer = await behind.http.post(f"{behind.url}/api/v1/deployments", json=body, headers=HEADERS)
    assert answer.status_code in (200, 201), answer.text
    url: str = answer.json()["machine"]["url"]
    assert url.startswith(behind.url + "/")
    return url


async def use(behind: Proxied, machine: str) -> None:
    """HTTP, a WebSocket and a stream see the same session."""
    async with (
        connect(machine.replace("https", "wss") + "/s", ssl=behind.trust) as socket,
        behind.http.stream(
            "GET", f"{machine}/s", headers={"Accept": "text/event-stream"}
        ) as stream,
    ):
        assert json.loads(await socket.recv())["type"] == "snapshot"
        lines = stream.aiter_lines()
        sent = await behind.http.post(f"{machine}/s", json={"type": "increment"})
        assert sent.json()["snapshot"]["context"]["count"] == 1
        while "update" not in (frame := json.loads(await socket.recv()))["type"]:
            pass
        assert frame["snapshot"]["context"]["count"] == 1
        async with asyncio.timeout(30):
            async for line in lines:
                if line.startswith("data:") and '"count":1' in line:
                    break


async def test_a_machine_is_used_through_a_proxy(behind: Proxied) -> None:
    await use(behind, await deploy(behind))
    admission = behind.client.hub.admission
    # A proxy that does not say who has left finds out by what it cannot send on: after half a minute.
    await until(lambda: not admission._inside and not admission._connected, within_s=20)


async def test_clients_of_a_proxy_are_counted_by_their_address(behind: Proxied) -> None:
    """What a client says of its own address counts for nothing."""
    connected = behind.client.hub.admission._connected
    inside = behind.client.hub.admission._inside
    machine = await deploy(behind)
    headers = {"X-Forwarded-For": "203.0.113.7"}
    url = machine.replace("https", "wss") + "/addresses"
    async with connect(url, ssl=behind.trust, additional_headers=headers) as socket:
        await socket.recv()
        assert set(inside) == {"127.0.0.1"}
        assert not connected


async def test_health_is_for_ones_own_network(behind: Proxied) -> None:
    """The proxy lets its own computer ask."""
    assert (await behind.http.get(f"{behind.url}/readyz")).status_code == 200


async def test_what_a_proxied_client_is_refused_is_counted(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    limits = Limits(requests_per_s=20)
    async with proxied(tmp_path, "nginx", certificate, limits=limits) as found:

        async def is_refused() -> bool:
            asked = [found.http.get(f"{found.url}/api/v1/machines") for _ in range(30)]
            return any(each.status_code == 429 for each in await asyncio.gather(*asked))

        await until(is_refused)

        async def is_told() -> bool:
            metrics = await found.http.get(f"{found.url}/metrics")
            return 'machinehub_refused_total{code="rate_limited"}' in metrics.text

        await until(is_told)


async def test_an_untrusted_proxy_is_one_address(
    tmp_path: Path, certificate: tuple[Path, Path]
) -> None:
    async with proxied(tmp_path, "nginx", certificate, trusted_proxies="10.0.0.0/8") as found:
        admission = found.client.hub.admission
        machine = await deploy(found)
        async with connect(machine.replace("https", "wss") + "/s", ssl=found.trust) as socket:
            await socket.recv()
            assert set(admission._connected) == {"127.0.0.1"}


async def test_an_nginx_as_it_comes_does_not_reach_an_open_hub(tmp_path: Path) -> None:
    """It calls the hub by its own address, and says nothing of its clients."""
    port = free_port()
    async with running_hub(tmp_path / "hub") as client:
        server = f"""server {{
            listen 127.0.0.1:{port};
            location / {{ proxy_pass {client.url}; }}
        }}"""
        async with nginx(tmp_path, server, port=port), httpx.AsyncClient() as http:
            for path in ("/", "/api/v1/machines", "/metrics"):
                problem(await http.get(f"http://127.0.0.1:{port}{path}"), 403, "foreign_host")


@pytest.mark.parametrize("strips", [False, True], ids=["path-kept", "path-stripped"])
async def test_a_hub_stands_below_a_path(
    tmp_path: Path, certificate: tuple[Path, Path], strips: bool
) -> None:
    async with proxied(tmp_path, "nginx", certificate, path="/the/hub", strips=strips) as found:
        machine = await deploy(found)
        assert machine.startswith(f"{found.url}/")
        await use(found, machine)
        options = ("--server", found.url, "--token", TOKEN)
        trusted = str(found.certificate)
        listed = await run("list", *options, SSL_CERT_FILE=trusted)
        assert machine in listed.stdout, listed
        sent = await run("send", "proxied/cli", "increment", *options, SSL_CERT_FILE=trusted)
        assert '"count": 1' in sent.stdout, sent
        async with chromium() as browser:
            context = await browser.new_context(ignore_https_errors=True)
            page = await context.new_page()
            await page.goto(f"{machine}/seen")
            await expect(page.get_by_text("connected")).to_be_visible()
            await page.get_by_role("button", name="increment").first.click()
            await expect(page.get_by_text("seq 2", exact=True)).to_be_visible()
            await page.get_by_role("tab", name="share").click()
            await expect(
                page.get_by_text(f"{found.url}/assets/machinehub-client.tgz")
            ).to_be_visible()
            await page.goto(f"{found.url}/")
            await page.get_by_role("textbox").fill(TOKEN)
            await page.get_by_role("button", name="Use token").click()
            await page.get_by_role("link", name="proxied").click()
            await expect(page.get_by_role("button", name="increment").first).to_be_visible()
            assert page.url.startswith(machine)

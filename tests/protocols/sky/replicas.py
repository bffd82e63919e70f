"""Stately's own packages, as npm serves them, in Node."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import httpx

from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

APP = ROOT / "examples" / "apps" / "sky-counter"
"""Where they are installed."""
HERE = ROOT / "tests" / "protocols" / "sky"
PATIENCE_S = 30.0


async def config_of(machine_url: str, folder: Path, key: str = "sta_any") -> Path:
    """The file that an app has after `xstate sky`, as JavaScript."""
    async with httpx.AsyncClient() as http:
        found = await http.get(machine_url, headers={"User-Agent": "node-fetch/1.0"})
        assert found.status_code == 307
        actor = found.headers["location"].partition("actorId=")[2]
        base = machine_url.rpartition("/")[0]
        answer = await http.get(
            f"{base}/registry/api/sky/actor-config?actorId={actor}",
            headers={"Authorization": f"Bearer {key}"},
        )
    assert answer.status_code == 200, answer.text
    said = answer.json()
    source = folder / f"{actor.replace('@', '-')}.sky.ts"
    exported = f"export const skyConfig = {{ actorId: {json.dumps(said['actorId'])}, machine }};\n"
    source.write_text(f"{said['configString']}\n{exported}")
    return await bundled(source)


async def bundled(source: Path) -> Path:
    """With the XState of Stately's packages."""
    target = source.with_suffix(".mjs")
    await run_esbuild(source, target, APP / "node_modules" / "xstate")
    return target


async def run_esbuild(source: Path, target: Path, xstate: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        ROOT / "node_modules" / ".bin" / "esbuild",
        *("--bundle", "--format=esm", "--platform=node", "--log-level=warning"),
        f"--alias:xstate={xstate}",
        *(str(source), f"--outfile={target}"),
    )
    assert await process.wait() == 0


class Replica:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.said: list[dict[str, Any]] = []
        self._news = asyncio.Condition()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            async with self._news:
                self.said.append(json.loads(line))
                self._news.notify_all()

    async def send(self, type_: str, **more: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"send": {"type": type_, **more}}).encode() + b"\n")
        await self._process.stdin.drain()

    async def until(self, name: str, wanted: Any = None) -> Any:
        """What it said of that name, once that is `wanted` (None: anything)."""

        def found() -> list[Any]:
            said = [each[name] for each in self.said if name in each]
            return said if wanted is None else [each for each in said if each == wanted]

        async with self._news:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._news.wait_for(found)
            except TimeoutError:
                raise AssertionError(f"no {name} {wanted} in {self.said}") from None
        return found()[-1]

    async def until_state(self, **wanted: Any) -> None:
        """Until its last state has these parts."""

        def holds() -> bool:
            state = self.state
            return state is not None and all(state.get(key) == wanted[key] for key in wanted)

        async with self._news:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._news.wait_for(holds)
            except TimeoutError:
                raise AssertionError(f"not {wanted}: {self.said[-5:]}") from None

    @property
    def state(self) -> dict[str, Any] | None:
        said = [each.get("state") or each.get("started") for each in self.said]
        found = [each for each in said if each is not None]
        return found[-1] if found else None

    async def end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
        await self._reading


@contextlib.asynccontextmanager
async def replica(
    config: Path, port: int, session: str, *, key: str = "sta_any", starts: bool = True
) -> AsyncIterator[Replica]:
    """A client of the hub at that port of this computer. With `starts` it has been let in."""
    process = await asyncio.create_subprocess_exec(
        "node",
        str(HERE / "replica.mjs"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ
        | {
            "APP": str(APP),
            "CONFIG": str(config),
            "SESSION": session,
            "KEY": key,
            "SKY_HOST": f"127.0.0.1:{port}",
        },
    )
    made = Replica(process)
    try:
        if starts:
            await made.until("started")
        yield made
    finally:
        await made.end()

"""The API against its own description: schemathesis makes requests of it, right ones and wrong
ones, and reads every answer.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from machinehub.limits import Limits
from tests.support import COUNTER, running_hub

EXAMPLES = "12"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
)
CONFIG = """
[parameters]
"path.machine" = "{machine}"
"path.session" = "s1"
"path.number" = 1
[[operations]]
include-path = "/api/v1/machines/{{machine}}"
parameters = {{ "path.machine" = "doomed" }}
"""


async def test_the_api_is_as_it_says(tmp_path: Path) -> None:
    async with running_hub(
        tmp_path / "hub", workers=1, limits=Limits(wait_timeout_ms=50)
    ) as client:
        machine = await client.deploy(COUNTER)
        await client.deploy(COUNTER, name="doomed")
        await client.http.post(f"/{machine}/s1", json={"type": "increment"})
        (tmp_path / "schemathesis.toml").write_text(CONFIG.format(machine=machine))
        command = [
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{client.url}/api/v1/openapi.json",
            "--max-examples",
            EXAMPLES,
            "--seed",
            "1",
            "--phases",
            "examples,coverage,fuzzing",
        ]
        run = await asyncio.create_subprocess_exec(
            *command,
            "--checks",
            ",".join(CHECKS),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(run.communicate(), 120)
        assert run.returncode == 0, said.decode()
        assert (
            await client.http.post(f"/{machine}/afterwards", json={"type": "increment"})
        ).status_code == 200

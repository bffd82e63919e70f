"""The compiler of strangers' modules."""

from __future__ import annotations

from tests.sandbox.test_modules import bomb, deploy
from tests.support import COUNTER, Client


async def test_compiling_is_capped(client: Client) -> None:
    """A module that takes long to compile ends with its process, or is a machine in the end; others
    never wait for it longer than the cap.
    """
    before = client.worker_pids()
    response = await deploy(client, bomb(), "bomb")
    assert response.status_code in (201, 422)
    if response.status_code == 422:
        assert response.json()["code"] in ("build_crashed", "build_timeout", "invalid_module")
    assert set(before) <= set(client.worker_pids())
    await client.deploy(COUNTER, name="after-the-bomb")

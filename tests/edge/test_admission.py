"""Who is let in, before anything else is looked at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import InvalidStatus

from tests.support import COUNTER, Client, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path

FORWARDED = [
    {"X-Forwarded-For": "203.0.113.9"},
    {"X-Forwarded-Host": "hub.example"},
    {"X-Forwarded-Proto": "https"},
    {"Forwarded": "for=203.0.113.9;proto=https"},
]


@pytest.mark.parametrize("headers", FORWARDED)
async def test_an_open_hub_is_not_for_a_proxys_clients(
    client: Client, headers: dict[str, str]
) -> None:
    machine = await client.deploy(COUNTER, name="proxied")
    for path in ("/", "/api/v1/machines", f"/{machine}", f"/{machine}/s"):
        problem(await client.http.get(path, headers=headers), 403, "foreign_host")
    with pytest.raises(InvalidStatus) as refused:
        async with client.socket(f"{machine}/s", additional_headers=headers):
            pass
    assert refused.value.response.status_code == 403


async def test_a_hub_with_a_token_is(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_t") as client:
        machine = await client.deploy(COUNTER)
        for headers in FORWARDED:
            answer = await client.http.get(f"/{machine}/s", headers=headers)
            assert answer.status_code == 200


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        ("http://localhost:5173", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:3000", True),
        ("https://elsewhere.example", False),
        ("http://localhost.elsewhere.example", False),
        ("null", False),
        ("http://[", False),
        ("http://localhost@elsewhere.example", False),
    ],
)
async def test_an_open_hub_is_for_pages_of_this_computer(
    client: Client, origin: str, is_let_in: bool
) -> None:
    machine = await client.deploy(COUNTER, name="pages")
    headers = {"Origin": origin}
    asked = [
        await client.http.get(f"/{machine}/s", headers=headers),
        await client.http.post(f"/{machine}/s", json={"type": "increment"}, headers=headers),
    ]
    for answer in asked:
        if is_let_in:
            assert answer.status_code == 200
        else:
            problem(answer, 403, "foreign_origin")
    try:
        async with client.socket(f"{machine}/s", additional_headers=headers) as socket:
            await socket.until("snapshot")
            got_in = True
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        got_in = False
    assert got_in == is_let_in


async def test_a_setting_names_the_sites_whose_pages_may(tmp_path: Path) -> None:
    async with running_hub(tmp_path, origins="https://ours.example") as client:
        machine = await client.deploy(COUNTER)
        ours = await client.http.get(f"/{machine}/s", headers={"Origin": "https://ours.example"})
        assert ours.status_code == 200
        other = await client.http.get(f"/{machine}/s", headers={"Origin": "https://other.example"})
        problem(other, 403, "foreign_origin")

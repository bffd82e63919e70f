"""Row 18: names and paths that lead elsewhere."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.attacks.test_clients import ask
from tests.support import COUNTER, Client

IDS = [
    "..",
    ".",
    "../../etc/passwd",
    "/etc/passwd",
    "a/b",
    "%2e%2e",
    "a\0b",
    "\r\nSet-Cookie: x=1",
    "😀",
    "é",
    "\u202e",
    "x" * 128,
    "wait",
    "presence",
    "@2",
    "?",
    "#",
    "&",
    "'; DROP TABLE sessions; --",
    "<script>",
    "${7*7}",
    "*",
    ">",
    "a b",
    "+",
    "\u0301",
    "CON",
    "~root",
    "sessions.*",
]


@pytest.mark.parametrize("session", IDS)
async def test_odd_ids_are_ids(
    tmp_path_factory: pytest.TempPathFactory, client: Client, session: str
) -> None:
    """A session of that very name, as the API lists it, or a refusal; and no file beside the data
    folder's own.
    """
    machine = await client.deploy(COUNTER, name="odd-ids-raw")
    kept = sorted(path.name for path in client.hub.settings.data.iterdir())
    path = f"/{machine}/{quote(session, safe='')}"
    body = b'{"type":"increment"}'
    head, _, answer = (
        await ask(
            client,
            (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: "
                f"close\r\nContent-Length: {len(body)}\r\n\r\n"
            ).encode()
            + body,
        )
    ).partition(b"\r\n\r\n")
    assert b"Set-Cookie" not in head
    assert head.startswith(b"HTTP/1.1 200"), answer
    listed = (await client.http.get("/api/v1/machines/odd-ids-raw/sessions?limit=500")).json()[
        "data"
    ]
    assert session in [found["id"] for found in listed]
    assert sorted(path.name for path in client.hub.settings.data.iterdir()) == kept


@pytest.mark.parametrize(
    ("path", "statuses"),
    [
        ("/../../etc/passwd", (404,)),
        ("/%2e%2e/%2e%2e/etc/passwd", (400, 404)),
        ("/assets/../../app.py", (404,)),
        ("/assets/%2e%2e%2fapp.py", (404,)),
        ("/assets/..%5capp.py", (404,)),
        ("/assets/%00", (404,)),
        ("//evil.example/x", (404,)),
        ("/" + "x" * 10_000, (404,)),
        ("/{machine}/" + "x" * 10_000, (400,)),
        ("/{machine}/%ff", (400,)),
        ("/{machine}/", (400,)),
        ("/{machine}@99999999999/s", (404,)),
        ("/{machine}@0/s", (404,)),
        ("/{machine}@-1/s", (404,)),
        ("/{machine}/s/../../x", (404,)),
        ("/api/v1/machines/..%2f..", (404,)),
        ("/api/v1/machines/%00", (400, 404)),
        ("/api/v1/machines/{machine}/versions/1e3", (404,)),
        ("/api/v1/machines/" + "y" * 20_000, (404, 414, 431)),
        ("/%", (400, 404)),
        ("/%zz", (400, 404)),
        ("/{machine}/s?at=%00", (400,)),
        ("/{machine}/s?input=%00", (200, 400)),
    ],
)
async def test_paths_that_lead_nowhere(
    client: Client, path: str, statuses: tuple[int, ...]
) -> None:
    machine = await client.deploy(COUNTER, name="paths")
    answer = await ask(
        client,
        f"GET {path.replace('{machine}', machine)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode(),
    )
    assert int(answer.split()[1]) in statuses, answer
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "path",
    [
        "../../evil.ts",
        "/etc/evil.ts",
        "a/../../evil.ts",
        "a\\..\\..\\evil.ts",
        "C:\\evil.ts",
        "\0.ts",
        "a//b.ts",
        "./x/./../../../y.ts",
        "-",
        "~/x.ts",
        "x" * 5000 + ".ts",
        "\u202e.ts",
        "node_modules/../../x.ts",
        "a/\n.ts",
        "",
    ],
)
async def test_uploaded_paths_stay_in_the_upload(client: Client, path: str) -> None:
    for files in ({"m.ts": COUNTER, path: "export const x = 1"}, {path: COUNTER}):
        entry = next(iter(files))
        response = await client.http.post(
            "/api/v1/deployments", json={"name": "paths-in", "entry": entry, "files": files}
        )
        assert response.status_code in (200, 201, 400, 413, 422), response.text
    await client.deploy(COUNTER, name="paths-in")

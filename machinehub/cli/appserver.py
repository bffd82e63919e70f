"""Serves a project's `app/` folder while `machinehub dev` runs: files as they are, and
`/machine.json`, which tells them the machine's URL.

For one developer's own files on a loopback address; a hub itself serves no files of projects.
"""

from __future__ import annotations

import functools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "app"
PORTS_TRIED = 20


class AppServer:
    """Listens on the first free port behind the hub's own. Raises `OSError` when there is none."""

    def __init__(self, folder: Path, port: int) -> None:
        self.machine_url = ""
        self._server = self._listen(functools.partial(_Handler, self, str(folder)), port)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    @staticmethod
    def _listen(handler: Any, port: int) -> ThreadingHTTPServer:
        for number in range(port + 1, min(port + PORTS_TRIED, 65536)):
            try:
                return ThreadingHTTPServer(("127.0.0.1", number), handler)
            except OSError:
                continue
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, app: AppServer, folder: str, *given: Any) -> None:
        self._app = app
        super().__init__(*given, directory=folder)

    def do_GET(self) -> None:
        # A name of somebody else's that leads here would be a page of another site reading ours.
        host = self.headers.get("Host", "").rpartition(":")[0].lower()
        if host not in ("127.0.0.1", "localhost") or "%00" in self.path:
            self.send_error(403, "only for this computer")
            return
        if self.path.partition("?")[0] != "/machine.json":
            super().do_GET()
            return
        body = json.dumps({"url": self._app.machine_url}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.send_error(405, "GET alone")

    def list_directory(self, path: Any) -> None:  # noqa: ARG002 - what the base class is asked
        self.send_error(404, "no such file")

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-cache")  # what was saved is what is seen
        super().end_headers()

    def log_message(self, *_: Any) -> None:
        """Says nothing: the terminal is for deployments."""

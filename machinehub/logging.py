"""Logs of the hub itself (machines' logs are in `logs.py`): JSON lines for `serve`, short lines for
`dev`.
"""

from __future__ import annotations

import logging
import sys

import msgspec

from machinehub.clock import timestamp


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": timestamp(int(record.created * 1000)),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def configure_logging(*, structured: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonLines() if structured else logging.Formatter("%(levelname)s %(message)s")
    )
    logging.basicConfig(
        level=logging.INFO if structured else logging.WARNING, handlers=[handler], force=True
    )
    for noisy in ("uvicorn", "uvicorn.error", "alembic", "httpx", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)

"""Time, randomness and ids: the only module that asks the operating system for them."""

from __future__ import annotations

import datetime
import random
import secrets
import string
import time
from typing import Final, Protocol

BASE62: Final = string.ascii_letters + string.digits
MACHINE_ID_CHARS: Final = 8
RESERVED_IDS: Final = frozenset({"healthz", "readyz", "metrics", "favicon", "assets", "robots"})


class Clock(Protocol):
    """Where the hub takes time from. Milliseconds since 1970."""

    ticks: bool
    """Whether time passes by itself; if not, whoever moves it also fires what came due."""

    def now_ms(self) -> int: ...


class SystemClock:
    """The computer's clock, kept from running backwards: a machine's `Date.now()` never does."""

    ticks = True

    def __init__(self) -> None:
        self._last = 0

    def now_ms(self) -> int:
        self._last = max(self._last, time.time_ns() // 1_000_000)
        return self._last


class ManualClock:
    """A clock that stands still until it is told. For tests and simulations."""

    ticks = False

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def move_to(self, now_ms: int) -> None:
        self._now_ms = now_ms


class Entropy:
    """Seeds and ids. `seed` makes it repeatable, for tests; without it ids cannot be guessed."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.SystemRandom() if seed is None else random.Random(seed)
        # Turn seeds are drawn for every event; the operating system would cost a system call each.
        self._turns = random.Random(self._random.getrandbits(128))
        self._last_key = 0

    def turn_seed(self) -> int:
        """A whole number in 1..2^53-1: what one turn's randomness is drawn from."""
        return self._turns.getrandbits(53) or 1

    def machine_id(self) -> str:
        while (
            candidate := "".join(self._random.choices(BASE62, k=MACHINE_ID_CHARS))
        ) in RESERVED_IDS:
            pass
        return candidate

    def session_key(self, now_ms: int) -> int:
        """63 bits that no other session has.

        They grow with time, so that new sessions lie together in the database.
        """
        self._last_key = max(
            (now_ms << 21 | self._turns.getrandbits(21)) & (2**63 - 1), self._last_key + 1
        )
        return self._last_key

    def connection_id(self) -> str:
        return "".join(self._random.choices(BASE62, k=12))


def new_token() -> str:
    """A bearer token: 256 random bits, with a prefix that secret scanners can look for."""
    return "mh_" + secrets.token_urlsafe(32)


def timestamp(ms: int) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return (
        datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )

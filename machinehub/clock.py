"""Time, randomness and ids: the only module that asks the operating system for them."""

from __future__ import annotations

import datetime as dt
import email.utils
import random
import secrets
import string
import time
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.ids import MachineId, NodeId, SessionKey

if TYPE_CHECKING:
    from collections.abc import Callable

BASE62: Final = string.ascii_letters + string.digits
MACHINE_ID_CHARS: Final = 8
RESERVED_IDS: Final = frozenset({"healthz", "readyz", "metrics", "favicon", "assets", "robots"})


class Clock(Protocol):
    """Where the hub takes time from."""

    ticks: bool
    """Whether time passes by itself; if not, whoever moves it also fires what came due."""

    def now_ms(self) -> int:
        """The time that sessions see: milliseconds since 1970. It never runs backwards."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some moment, for measuring how long something takes."""
        ...


STEP_NS: Final = 500_000_000
"""The computer's clock moved by more than this against the time that passed: it was set. (NTP slews
by half a millisecond in a second.)
"""
CATCHING_UP: Final = 20
"""While the computer's clock is behind what sessions have seen, theirs is slower by one part in so
many.
"""


class SystemClock:
    """The computer's clock, made fit for sessions: it never runs backwards, and never stands still.

    When the computer's clock is put forward, sessions see that at once. When it is put back, by an
    hour say, their time goes on from where it was, a little slower, until the computer's has caught
    up: a timer of a minute fires after a minute. (NTP slews a clock for the same reason.)

    `resume` goes on from the time of an earlier process. `on_step` hears by how many milliseconds
    the computer's clock was set.
    """

    ticks = True

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Both are clocks in nanoseconds; tests give their own."""
        self._wall_ns = wall_ns
        self._monotonic_ns = monotonic_ns
        self._at_ns = monotonic_ns()
        self._seen_ns = self._now_ns = wall_ns()
        self.on_step: Callable[[int], None] = lambda _ms: None

    def now_ms(self) -> int:
        wall_ns, at_ns = self._wall_ns(), self._monotonic_ns()
        passed_ns, self._at_ns = at_ns - self._at_ns, at_ns
        step_ns, self._seen_ns = wall_ns - self._seen_ns - passed_ns, wall_ns
        if wall_ns >= self._now_ns + passed_ns:
            self._now_ns = wall_ns
        else:
            slower_ns = self._now_ns + passed_ns - passed_ns // CATCHING_UP
            self._now_ns = max(wall_ns, slower_ns)
        if not -STEP_NS < step_ns < STEP_NS:
            self.on_step(step_ns // 1_000_000)
        return self._now_ns // 1_000_000

    @property
    def wall_ms(self) -> int:
        """What the computer's clock says."""
        return self._wall_ns() // 1_000_000

    @property
    def ahead_ms(self) -> int:
        """How far sessions' time is ahead of the computer's clock."""
        return self.now_ms() - self.wall_ms

    def resume(self, session_ms: int, wall_ms: int) -> None:
        """Goes on from an earlier process, in which sessions' time was `session_ms` when the
        computer's clock said `wall_ms`.
        """
        self.now_ms()  # what passed until now is not to be counted once more
        since_ms = max(0, self.wall_ms - wall_ms)
        self._now_ns = max(self._now_ns, (session_ms + since_ms) * 1_000_000)

    def monotonic_s(self) -> float:
        return self._monotonic_ns() / 1e9


class ManualClock:
    """A clock that stands still until it is told. For tests and simulations."""

    ticks = False

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._now_ms / 1000

    def move_to(self, now_ms: int) -> None:
        self._now_ms = now_ms


measured_s: Final = time.perf_counter
"""Seconds on a clock that measures how long something takes: nothing is decided by it."""


class Stopwatch:
    """How long something takes, for people to read: nothing is decided by it."""

    def __init__(self) -> None:
        self._since_ns = time.perf_counter_ns()

    @property
    def us(self) -> int:
        """Microseconds since it was made."""
        return (time.perf_counter_ns() - self._since_ns) // 1000


class Entropy:
    """Seeds and ids. `seed` makes it repeatable, for tests; without it ids cannot be guessed."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.SystemRandom() if seed is None else random.Random(seed)  # noqa: S311
        # Turn seeds are drawn for every event; the operating system would cost a system call each.
        self._turns = random.Random(self._random.getrandbits(128))  # noqa: S311 - replayable
        self._last_key = 0

    def turn_seed(self) -> int:
        """A whole number in 1..2^53-1: what one turn's randomness is drawn from."""
        return self._turns.getrandbits(53) or 1

    def machine_id(self) -> MachineId:
        while (
            candidate := "".join(self._random.choices(BASE62, k=MACHINE_ID_CHARS))
        ) in RESERVED_IDS:
            pass
        return MachineId(candidate)

    def session_key(self, now_ms: int) -> SessionKey:
        """63 bits that no other session has.

        They grow with time, so that new sessions lie together in the database.
        """
        self._last_key = max(
            (now_ms << 21 | self._turns.getrandbits(21)) & (2**63 - 1), self._last_key + 1
        )
        return SessionKey(self._last_key)

    def fraction(self) -> float:
        """From 0 to 1, to spread what many do."""
        return self._turns.random()

    def lock_number(self) -> int:
        """31 bits."""
        return self._random.getrandbits(31)

    def connection_id(self) -> str:
        return "".join(self._random.choices(BASE62, k=12))


def new_node_id() -> NodeId:
    """12 base62 digits."""
    return NodeId("".join(secrets.choice(BASE62) for _ in range(12)))


def new_client_key() -> str:
    """Of 128 bits, in hexadecimal."""
    return secrets.token_hex(16)


PUBLISHABLE_PREFIX: Final = "mhp_"


def new_publishable_key() -> str:
    """A key for browsers, of 128 random bits: it is no secret, but nobody should guess one."""
    return PUBLISHABLE_PREFIX + secrets.token_urlsafe(16)


def new_jwt_secret() -> str:
    """A key of HS256: 256 random bits (RFC 7518, section 3.2) as base64url, which is the key."""
    return secrets.token_urlsafe(32)


def random_bytes(count: int) -> bytes:
    """That nobody can guess."""
    return secrets.token_bytes(count)


def http_date_s(text: str) -> float | None:
    """A date of HTTP (RFC 9110, section 5.6.7), in seconds since 1970; None for what is none."""
    try:
        at = email.utils.parsedate_to_datetime(text)
        return at.replace(tzinfo=at.tzinfo or dt.UTC).timestamp()
    except (ValueError, OverflowError):  # a year that no calendar has
        return None


def new_token() -> str:
    """A bearer token: 256 random bits, with a prefix that secret scanners can look for."""
    return "mh_" + secrets.token_urlsafe(32)


def pause_about(seconds: float) -> None:
    """Sleeps for half to one and a half times so long, so that clients of one hub do not all come
    back at once.
    """
    time.sleep(seconds * random.uniform(0.5, 1.5))  # noqa: S311 - a spread, no secret


def timestamp(ms: int) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return (
        dt.datetime.fromtimestamp(ms / 1000, dt.UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


def timestamp_or_none(ms: int | None) -> str | None:
    """The same of a moment that may not have come."""
    return None if ms is None else timestamp(ms)

"""The life cycle of a session in this hub's memory, as two state machines: `Phase` and `Stage`.

Only the transitions of `TRANSITIONS` and `MOVES` occur; `docs/architecture.md` draws them, and
`tests/session/decide/test_lifecycle.py` tries every step in every phase.

`Phase` says how much of the session is in memory: whether its stored state is loaded, and whether
its public snapshot can be read. `Stage` says whether a worker has the session. The two are
independent: a session in the phase `LIVE` may be on a worker or not. A session that nobody uses is
not in memory at all, and has neither.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Phase(Enum):
    """What is known of a session: its name, whether it is loaded, and whether it can be read."""

    NEW = "new", False, False
    """Somebody asked for it: it may be in the database, or about to begin."""
    LOADING = "loading", False, False
    """The database is being asked. What was known before, if anything, may be older than what is
    there.
    """
    STARTING = "starting", True, False
    """The database has no such session: its first input is on its way."""
    REPLAYING = "replaying", True, False
    """It is loaded; its last inputs are being replayed, since their snapshots are not stored."""
    LIVE = "live", True, True
    """It is loaded, and its snapshot is what was committed last."""
    ASLEEP = "asleep", False, True
    """It was unloaded while somebody watches: its snapshot can still be read."""
    WAKING = "waking", False, True
    """As `ASLEEP`, while the database is being asked."""
    IN_DOUBT = "in doubt", False, False
    """The answer to a commit was lost: the database may know more than is known here."""
    GONE = "gone", False, False
    """It was deleted, or could not begin. Nothing leads back."""

    def __init__(self, label: str, loaded: bool, readable: bool) -> None:
        self.label = label
        self.loaded = loaded
        """Whether memory has what the database has: checkpoint, tail, timers."""
        self.readable = readable
        """Whether the public snapshot is known to be what was committed last."""


class Step(Enum):
    """What happens to the knowledge of a session."""

    LOAD = "load"
    FAIL = "fail"
    """The database did not answer."""
    ABSENT = "absent"
    """The database has no such session, and it may begin."""
    FOUND = "found"
    """It was loaded, and the stored snapshot is the last one."""
    FOUND_BEHIND = "found behind"
    """It was loaded; the stored snapshot is older than the last inputs."""
    STARTED = "started"
    """Its first input was committed."""
    REPLAYED = "replayed"
    UNLOAD = "unload"
    """Memory lets go of what the database has."""
    DOUBT = "doubt"
    """Something was decided, and may or may not have been committed."""
    FORGET = "forget"
    """It is no more, or never was."""


TRANSITIONS: Final[dict[Phase, dict[Step, Phase]]] = {
    Phase.NEW: {Step.LOAD: Phase.LOADING, Step.FORGET: Phase.GONE},
    Phase.LOADING: {
        Step.ABSENT: Phase.STARTING,
        Step.FOUND: Phase.LIVE,
        Step.FOUND_BEHIND: Phase.REPLAYING,
        Step.FAIL: Phase.IN_DOUBT,
        Step.FORGET: Phase.GONE,
    },
    Phase.STARTING: {
        Step.STARTED: Phase.LIVE,
        Step.UNLOAD: Phase.IN_DOUBT,
        Step.DOUBT: Phase.IN_DOUBT,
        Step.FORGET: Phase.GONE,
    },
    Phase.REPLAYING: {
        Step.REPLAYED: Phase.LIVE,
        Step.UNLOAD: Phase.IN_DOUBT,
        Step.DOUBT: Phase.IN_DOUBT,
        Step.FORGET: Phase.GONE,
    },
    Phase.LIVE: {
        Step.UNLOAD: Phase.ASLEEP,
        Step.DOUBT: Phase.IN_DOUBT,
        Step.FORGET: Phase.GONE,
    },
    Phase.ASLEEP: {Step.LOAD: Phase.WAKING, Step.FORGET: Phase.GONE},
    Phase.WAKING: {
        Step.FOUND: Phase.LIVE,
        Step.FOUND_BEHIND: Phase.REPLAYING,
        Step.FAIL: Phase.ASLEEP,
        Step.FORGET: Phase.GONE,
    },
    Phase.IN_DOUBT: {Step.LOAD: Phase.LOADING, Step.FORGET: Phase.GONE},
    Phase.GONE: {},
}


class Stage(Enum):
    """Where a session runs."""

    OFF = "off"
    """On no worker."""
    PLACING = "placing"
    """A worker, an image or the database is waited for."""
    ON = "on"
    FREEZING = "freezing"
    """Its worker was asked for a checkpoint, after which it leaves; unless an input comes first."""


class Move(Enum):
    """What happens to the place of a session."""

    SEEK = "seek"
    GIVE_UP = "give up"
    """No worker is needed any more, or none can be had."""
    THAW = "thaw"
    FREEZE = "freeze"
    KEEP = "keep"
    """The checkpoint is there, and so is another input."""
    LEAVE = "leave"


MOVES: Final[dict[Stage, dict[Move, Stage]]] = {
    Stage.OFF: {Move.SEEK: Stage.PLACING, Move.THAW: Stage.ON},
    Stage.PLACING: {Move.GIVE_UP: Stage.OFF, Move.THAW: Stage.ON},
    Stage.ON: {Move.FREEZE: Stage.FREEZING, Move.LEAVE: Stage.OFF},
    Stage.FREEZING: {Move.KEEP: Stage.ON, Move.LEAVE: Stage.OFF},
}

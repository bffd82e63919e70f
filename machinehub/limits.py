"""Every limit, with its unit and its reason.

A hub's settings raise or lower them (`MACHINEHUB_LIMIT_<NAME>`).

The error code that each gives is in docs/limits.md, which a test holds against this file.
"""

from __future__ import annotations

from typing import Final

import msgspec

PAYLOAD_EVENTS_MAX: Final = 200
PAYLOAD_FIELDS_MAX: Final = 50
PAYLOAD_TEXT_CHARS_MAX: Final = 200
"""Of the descriptions of events' payloads that come with an upload, for the page's forms."""


class MachineLimits(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """What a version says of its own limits: `[limits]` in machinehub.toml.

    Only less than the hub's.
    """

    event_cpu_ms: int | None = None
    start_cpu_ms: int | None = None
    memory_bytes: int | None = None
    snapshot_bytes: int | None = None
    emitted_bytes: int | None = None
    timers: int | None = None
    actors: int | None = None
    effects: int | None = None
    effect_bytes: int | None = None
    jobs: int | None = None
    log_lines: int | None = None
    log_line_bytes: int | None = None
    event_bytes: int | None = None
    event_depth: int | None = None
    input_bytes: int | None = None
    connections_per_session: int | None = None
    events_per_s: int | None = None
    event_burst_bytes: int | None = None
    machine_events_per_s: int | None = None
    joins_per_s: int | None = None
    presence_metadata_bytes: int | None = None


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    event_bytes: int = 64 * 1024
    """One client event, as JSON. A person types kilobytes; files belong elsewhere."""
    input_bytes: int = 64 * 1024
    """A session's XState input, as JSON."""
    event_depth: int = 64
    """Nesting of an event. Parsers recurse; nobody's form is this deep."""
    source_bytes: int = 1024 * 1024
    """All uploaded files together that are no npm packages'. A machine with its helpers is a few
    KiB.
    """
    source_files: int = 200
    package_bytes: int = 8 * 1024 * 1024
    """All uploaded files of npm packages: of `effect` a bundler reads 5 MiB to make 300 KiB of it.
    """
    package_files: int = 1000
    module_bytes: int = 1024 * 1024
    """A machine that comes as a WASM module. What compiling one takes grows faster than its size.
    """
    bundle_bytes: int = 1024 * 1024
    """What esbuild makes of the upload, without its source map: it is parsed by an interpreter."""
    event_cpu_ms: int = 50
    """CPU of one turn: 500 times what a counter needs, and short enough that neighbours do not
    notice.
    """
    start_cpu_ms: int = 250
    """CPU of a session's first turn: the initial context may compute something."""
    build_cpu_ms: int = 2_000
    """CPU of loading a bundle while its image is built."""
    memory_bytes: int = 16 * 1024 * 1024
    """The whole memory of a session, of which the image takes about 2 MiB; a session of a small
    machine has some 100 KiB of its own.
    """
    snapshot_bytes: int = 256 * 1024
    """The public snapshot: it goes to every connection after every change."""
    emitted_bytes: int = 256 * 1024
    """What one turn emits, together; the same reason."""
    emitted_kept_bytes: int = 64 * 1024
    """Emitted events of a session that are remembered for SSE clients that come back."""
    timers: int = 1_000
    """Pending timers of a session. Enforced inside the guest."""
    timer_turns_per_s: int = 250
    """Timers of a session that fire in one second; what is due beyond that waits for the next.

    A machine may set its next timer at once.
    """
    unattended_timers_per_min: int = 60
    """Timers of a session that nobody listens to, sustained; what is due beyond that fires later.

    A workflow that waits and reminds has a few an hour, a game that nobody plays has ten a second.
    """
    unattended_timer_burst: int = 600
    """So many of them may fire before that rate counts: whoever left may come back soon."""
    actors: int = 1_000
    """Children of a session, and theirs, after a turn: each is in the snapshot.

    Enforced inside the guest.
    """
    effects: int = 100
    """Requests of a session that wait for their answers. Enforced inside the guest."""
    effect_bytes: int = 512 * 1024
    """What one turn asks of the world, together: it is in the outbox, which has room for 1 MiB."""
    effects_in_flight: int = 400
    """Requests of all machines that are under way at once: each is a connection, and a little CPU.
    A machine has at most half of them, a project two thirds, and less the more there are that
    ask; a tenth is kept for projects that have none.
    """
    jobs: int = 10_000
    """Promise jobs of one turn. Enforced inside the guest."""
    log_lines: int = 64
    """Lines of one turn; what is over is dropped with a mark. Enforced inside the guest."""
    log_line_bytes: int = 4 * 1024
    log_lines_kept: int = 1_000
    """Lines kept per machine for `GET .../logs`."""
    session_id_chars: int = 128
    connections_per_address: int = 1_000
    """Connections and requests under way of one address, on hubs that are not open.

    An office behind one address has hundreds.
    """
    requests_per_s: int = 500
    """HTTP requests and new connections of one address, on the same hubs."""
    machine_events_per_s: int = 5_000
    """Events of all sessions of a machine, on the same hubs: more than a core can do for one
    stranger's machine.
    """
    connections: int = 20_000
    """HTTP connections of the whole hub; above it, requests are refused."""
    joins_per_s: int = 200
    """New members of a session. Each is news to all the others, and may be an event of the machine.
    """
    connections_per_session: int = 1_000
    """Connections of one session; separately, requests that wait for it. Each change is sent to
    all of them, so this bounds the cost of one event.
    """
    presence_grace_ms: int = 5_000
    """How long a member without a connection still counts as present: a page that is loaded again
    takes a second or two.
    """
    presence_metadata_bytes: int = 4 * 1024
    """What a member says of itself, as JSON: a name, a colour, a cursor.

    Everybody gets everybody's.
    """
    pending_per_session: int = 1_000
    """Inputs of one session that wait for their turn. Above it, clients are told `unavailable`."""
    pending_bytes: int = 4 * 1024 * 1024
    """The same, by size."""
    worker_bytes: int = 16 * 1024 * 1024 * 1024
    """Private memory of one sandbox worker, counted as the kernel does: an image counts whole for
    each of its sessions, though a tenth of it is touched.
    """
    resident_bytes: int = 0
    """Memory that all session workers touch together; 0 for two thirds of what the computer or the
    container has. Idle sessions are frozen before it is reached.
    """
    forge_bytes: int = 2 * 1024 * 1024 * 1024
    """The same of the process that builds images; the bundler alone may have 512 MiB."""
    live_sessions: int = 4_096
    """Sessions that may be thawed at once, at some 100 KiB or more each; above it, those idle
    longest are frozen early.
    """
    isolated_machines: int = 200
    """Machines with sessions that are awake, on hubs that give each a worker of its own, at about
    40 MiB each.
    """
    unsent_bytes: int = 1024 * 1024
    """Unsent data of one connection, after which it is closed with 4008."""
    unsent_bytes_soft: int = 128 * 1024
    """Unsent data after which a connection gets only the newest update."""
    events_per_s: int = 100
    """Events of one WebSocket, on hubs that are not open (`edge/tokens.py`).

    Requests are counted by address and machine.
    """
    event_burst_bytes: int = 64 * 1024
    """Bytes of events of one WebSocket in any one second, on the same hubs."""
    ids_remembered: int = 4_096
    """Event ids a session keeps in memory, to answer a second copy with the first one's ack.

    Older ones are found in the journal, more slowly.
    """
    wait_timeout_ms: int = 60_000
    """The longest that `POST .../wait` waits."""
    page_items: int = 500
    """The largest `limit=` of a list."""


def lowered(limits: Limits, own: MachineLimits) -> Limits:
    """The hub's limits, with a version's own where those are lower."""
    said = {
        name: min(value, getattr(limits, name))
        for name in own.__struct_fields__
        if (value := getattr(own, name)) is not None
    }
    return msgspec.structs.replace(limits, **said) if said else limits


def excessive(limits: Limits, own: MachineLimits) -> str | None:
    """What a version may not say of its limits, if it does."""
    for name in own.__struct_fields__:
        value = getattr(own, name)
        if value is not None and not 1 <= value <= getattr(limits, name):
            return f"{name} is a number from 1 to {getattr(limits, name)} here"
    return None

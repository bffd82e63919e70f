"""Prometheus metrics, one registry an app. docs/metrics.md is made of what is declared here.

What stands in the path of every event costs an addition or two: `Tally` and `Spread` are counters
and histograms without locks and labels, of one thread. Everything else is prometheus_client's.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from prometheus_client import Metric

TURN_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
GUEST_S: Final = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.05, 0.25, 1)
REQUEST_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)
LINES: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Tally:
    """A counter."""

    def __init__(self, registry: CollectorRegistry, name: str, text: str) -> None:
        self._name, self._text = name, text
        self._count = 0
        registry.register(self)

    def add(self, count: int = 1) -> None:
        self._count += count

    @property
    def count(self) -> int:
        return self._count

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text, self._count)


class Spread:
    """A histogram."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, bounds: Sequence[float]
    ) -> None:
        self._name, self._text = name, text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        buckets, total = [], 0
        names = [*(f"{bound:g}" for bound in self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, total))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum)


class Metrics:
    """Every metric of a hub. Gauges whose value is somewhere else anyway are set when they are
    asked for (`control/operations.py`).
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._turns()
        self._journal()
        self._sessions()
        self._workers()
        self._edge()
        self._effects()
        self._hub()
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """What an alert waits for must be there before it happens for the first time: to appear at
        one is no increase.
        """
        for reason in ("walls", "killed", "memory", "silent", "error", "signal", "exit"):
            self.worker_ends.labels("session", reason)
        for direction in ("forward", "back"):
            self.clock_steps.labels(direction)
        for reason in ("disk_full", "read_only", "damaged", "moved", "claim_lost", "unreachable"):
            self.commit_failures.labels(reason)

    def _turns(self) -> None:
        self.turns = self._tally("turns", "Inputs that were applied")
        self.rejected = self._counter(
            "rejected", "Events that were undone or refused, by code", "code"
        )
        self.turn_queue = self._spread(
            "turn_queue_seconds",
            "From an input's arrival to its being handed to a worker",
            TURN_S,
        )
        self.turn_guest = self._spread(
            "turn_guest_seconds", "CPU that turns took in their worker", GUEST_S
        )
        self.turn_total = self._spread(
            "turn_seconds",
            "From an input's arrival to its being committed and told to everybody",
            TURN_S,
        )
        self.inputs_waiting = self._gauge(
            "inputs_waiting", "Inputs that wait for their turn or for its answer"
        )

    def _journal(self) -> None:
        self.commit = self._spread("commit_seconds", "Time that commits took", TURN_S)
        self.commit_lines = self._spread(
            "commit_lines", "What was committed at once: inputs, checkpoints, deletions", LINES
        )
        self.commit_failures = self._counter(
            "commit_failures", "Commits that failed, by cause; they are tried again", "reason"
        )
        self.lines_waiting = self._gauge(
            "commit_lines_waiting", "What waits to be committed: inputs, checkpoints, deletions"
        )

    def _sessions(self) -> None:
        self.sessions_opened = self._counter("sessions_opened", "Sessions that were started")
        self.sessions = self._gauge("sessions", "Sessions in memory")
        self.live_sessions = self._gauge("live_sessions", "Sessions that are on workers")
        self.stored_sessions = self._gauge(
            "stored_sessions", "Sessions in the database, counted once a minute at most"
        )
        self.late_timers = self._tally(
            "timers_held_back",
            "Timers of sessions that nobody listens to that fire later, as they are over their"
            " rate",
        )
        self.busiest = self._gauge(
            "busiest_session_turns",
            "Turns in the last minute of the ten sessions with the most of them; told with a token"
            " only, where the hub has any",
            "machine",
            "session",
        )
        self.clock_steps = self._counter(
            "clock_steps",
            "How often the computer's clock was set while the hub ran, by direction",
            "direction",
        )
        self.clock_ahead = self._gauge(
            "clock_ahead_seconds",
            "How far sessions' time is ahead of the computer's clock, which was put back",
        )

    def _workers(self) -> None:
        self.worker_ends = self._counter(
            "worker_restarts",
            "Sandbox workers that ended unasked and were replaced, by kind and why",
            "kind",
            "reason",
        )
        self.worker_memory = self._gauge(
            "worker_memory_bytes", "Resident memory of each sandbox worker", "kind", "worker"
        )
        self.worker_sessions = self._gauge(
            "worker_sessions", "Sessions on each sandbox worker", "kind", "worker"
        )
        self.deployments = self._counter("deployments", "Deployments, by outcome", "outcome")
        self.deploy = self._histogram("deploy_seconds", "Deployments that succeeded", REQUEST_S)

    def _edge(self) -> None:
        self.refused = self._counter(
            "refused",
            "Requests, connections and frames that were refused before they became an event, by"
            " code",
            "code",
        )
        self.connections = self._gauge("connections", "Open WebSocket and SSE connections")
        self.accepting = self._gauge(
            "accepting", "1 while connections are accepted, 0 while there are no descriptors left"
        )
        self.request = self._histogram(
            "http_request_seconds",
            "From a request to the head of its answer, by method and by what was asked: `api`,"
            " `page`, `operations` or `machine`. One that waits for something is as long as that",
            REQUEST_S,
            "method",
            "what",
        )

    def _effects(self) -> None:
        self.effects = self._counter(
            "effects",
            "Requests of machines that ended, by outcome: `answered`, `withdrawn`, or a code",
            "outcome",
        )
        self.effect_retries = self._tally("effect_retries", "Tries of requests that failed")
        self.effect_seconds = self._spread(
            "effect_seconds", "What the last tries of requests took", REQUEST_S
        )
        self.effects_waiting = self._gauge(
            "effects_waiting", "Requests of machines in the database that have no answer yet"
        )
        self.effects_in_flight = self._gauge(
            "effects_in_flight", "Requests of machines that this hub has under way"
        )
        self.hooks = self._counter("hooks", "Webhooks that came in, by outcome", "outcome")

    def _hub(self) -> None:
        self.disk_free = self._gauge(
            "disk_free_bytes", "Free space on the disk of the data folder (SQLite)"
        )
        self.node = self._gauge("node_info", "Which of several hubs this one is: always 1", "node")
        self.nodes = self._gauge("nodes", "Living hubs that share the database, this one included")
        self.clients_elsewhere = self._gauge(
            "clients_elsewhere", "Connections to this hub whose sessions other nodes have"
        )
        self.build = self._gauge(
            "build_info",
            "1; the labels say what runs: the version, Python's, and the digest of the engine",
            "version",
            "python",
            "engine",
        )

    # --- declaring --------------------------------------------------------------------------------

    def _tally(self, name: str, text: str) -> Tally:
        return Tally(self.registry, f"machinehub_{name}", text)

    def _spread(self, name: str, text: str, bounds: Sequence[float]) -> Spread:
        return Spread(self.registry, f"machinehub_{name}", text, bounds)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"machinehub_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"machinehub_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: Iterable[float], *labels: str) -> Histogram:
        return Histogram(
            f"machinehub_{name}", text, labels, buckets=tuple(bounds), registry=self.registry
        )

    # --- several at once --------------------------------------------------------------------------

    def count_commit(self, lines: int, seconds: float) -> None:
        self.commit.add(seconds)
        self.commit_lines.add(lines)

    def say_build(self, engine: str) -> None:
        """`engine` is the digest of the one that new versions are built for."""
        self.build.labels(version("machinehub"), platform.python_version(), engine).set(1)

    def expose(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)


def set_all(gauge: Gauge, values: Mapping[tuple[str, ...], float]) -> None:
    """A gauge's values by its labels, in place of all it had."""
    gauge.clear()
    for labels, value in values.items():
        gauge.labels(*labels).set(value)

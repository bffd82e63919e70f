"""Prometheus metrics, one registry an app."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._turns = 0
        turns = Gauge("machinehub_turns_total", "Inputs that were applied", registry=self.registry)
        turns.set_function(lambda: self._turns)
        self.rejected = Counter(
            "machinehub_rejected",
            "Events that were undone or refused, by code",
            ["code"],
            registry=self.registry,
        )
        self.refused = Counter(
            "machinehub_refused",
            (
                "Requests, connections and frames that were refused before they became an event, "
                "by code"
            ),
            ["code"],
            registry=self.registry,
        )
        self.sessions_opened = Counter(
            "machinehub_sessions_opened", "Sessions that were started", registry=self.registry
        )
        self.worker_crashes = Counter(
            "machinehub_worker_crashes",
            "Sandbox workers that ended unasked",
            registry=self.registry,
        )
        self._commits, self._lines, self._commit_s = 0, 0, 0.0
        for name, text, read in (
            ("machinehub_journal_commits_total", "Commits of the journal", lambda: self._commits),
            (
                "machinehub_journal_lines_total",
                "What was committed: inputs, checkpoints, deletions",
                lambda: self._lines,
            ),
            (
                "machinehub_journal_commit_seconds_total",
                "Time that commits took",
                lambda: self._commit_s,
            ),
        ):
            Gauge(name, text, registry=self.registry).set_function(read)
        self.walls_hit = Gauge(
            "machinehub_walls_hit_total",
            "Sandbox workers that their own walls ended: they tried what no worker does",
            registry=self.registry,
        )
        self.deployments = Counter(
            "machinehub_deployments", "Deployments, by outcome", ["outcome"], registry=self.registry
        )
        self.connections = Gauge(
            "machinehub_connections", "Open WebSocket and SSE connections", registry=self.registry
        )
        self.sessions = Gauge("machinehub_sessions", "Sessions in memory", registry=self.registry)
        self.live_sessions = Gauge(
            "machinehub_live_sessions", "Sessions that are thawed", registry=self.registry
        )

    def count_turn(self) -> None:
        """A plain addition: this stands in the path of every event."""
        self._turns += 1

    def count_commit(self, lines: int, seconds: float) -> None:
        self._commits += 1
        self._lines += lines
        self._commit_s += seconds

    def expose(self) -> bytes:
        return generate_latest(self.registry)

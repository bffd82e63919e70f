"""Parts of the composition root (`app.py`): what carries out what machines ask of the world."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from machinehub.control.leaves import VersionLeaves
from machinehub.effects.broker import Broker
from machinehub.effects.calls import SCHEME, Calls
from machinehub.effects.mocked import ByScheme, Mocked
from machinehub.effects.outside import Outside
from machinehub.effects.secrets import KEY_FILE, KeyRing, Secrets, read_keys
from machinehub.egress.rules import check_allowed
from machinehub.errors import BadRequest
from machinehub.settings import PREFIX, BadSettings

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.control.catalog import Catalog
    from machinehub.edge.quotas import ProjectQuotas
    from machinehub.effects.asked import Carrier
    from machinehub.egress.client import Egress
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.port import Sessions
    from machinehub.settings import Settings
    from machinehub.store.secrets import SecretStore
    from machinehub.store.sessions import SessionStore
    from machinehub.store.store import Store


def check_egress_settings(settings: Settings) -> None:
    """Raises `BadSettings` for what would fail when a machine asks for something."""
    try:
        check_allowed(settings.egress_hosts)
    except BadRequest as error:
        raise BadSettings(f"{PREFIX}EGRESS_ALLOW: {error.detail}") from None
    try:
        read_keys(settings.secrets_key)
    except ValueError as error:
        raise BadSettings(f"{PREFIX}SECRETS_KEY: {error}") from None
    if settings.egress_ca:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(settings.egress_ca)
        except (OSError, ssl.SSLError) as error:
            raise BadSettings(f"{PREFIX}EGRESS_CA: {settings.egress_ca}: {error}") from None


def make_secrets(settings: Settings, store: SecretStore, clock: Clock, *, is_node: bool) -> Secrets:
    """Nodes share a database, and so their keys: none makes one of its own."""
    file = settings.secrets_key_file
    path = Path(file) if file else settings.data / KEY_FILE
    ring = KeyRing(settings.secrets_key, path, own=not file and not is_node)
    return Secrets(store, ring, clock)


class Parts(Protocol):
    """Of a hub, which are there before."""

    settings: Settings
    egress: Egress
    secrets: Secrets
    store: Store
    session_store: SessionStore
    catalog: Catalog
    quotas: ProjectQuotas
    logs: MachineLogs
    metrics: Metrics

    @property
    def port(self) -> Sessions: ...


def make_broker(hub: Parts, clock: Clock, entropy: Entropy) -> Broker:
    settings = hub.settings
    outside: Carrier = Outside(hub.egress, hub.secrets, clock)
    if settings.egress_mock:
        outside = Mocked(Path(settings.egress_mock))
    calls = Calls(hub.port, hub.store, settings.limits)
    return Broker(
        hub.session_store.effects,
        hub.port,
        VersionLeaves(hub.catalog, hub.quotas, settings.egress_hosts),
        ByScheme(calls, outside, SCHEME),
        clock,
        entropy,
        logs=hub.logs,
        metrics=hub.metrics,
        at_once=settings.limits.effects_in_flight,
    )

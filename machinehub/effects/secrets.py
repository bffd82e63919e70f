"""The secrets of projects: sealed in the database, opened on the way out.

Sealed with AES-256-GCM. What a secret is called, and in which project, is authenticated with it, so
that no row can be taken for another one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from machinehub.clock import random_bytes
from machinehub.egress.rules import check_allowed
from machinehub.errors import BadRequest, NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from machinehub.clock import Clock
    from machinehub.ids import ProjectId
    from machinehub.store.secrets import SecretStore, StoredSecret

NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
VALUE_CHARS_MAX: Final = 8 * 1024
HOSTS_MAX: Final = 20
KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12
KEY_FILE: Final = "secrets.key"
"""In the data folder, where nothing else says where the keys are."""


class Secret(NamedTuple):
    value: str
    hosts: list[str]
    """Where it may be sent; none for nowhere: it is for what comes in."""


class SealingKeys:
    """Keys of 32 bytes. The first seals, all open: so one is replaced by another."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = {_id_of(key): AESGCM(key) for key in keys}
        self.newest = _id_of(keys[0])

    def seal(self, value: bytes, about: bytes) -> bytes:
        nonce = random_bytes(NONCE_BYTES)
        return nonce + self._keys[self.newest].encrypt(nonce, value, about)

    def unseal(self, sealed: bytes, about: bytes, key_id: str) -> bytes:
        """Raises `Unavailable` where the key is not there, or another one."""
        key = self._keys.get(key_id)
        if key is None:
            raise Unavailable(
                "secrets_locked", "a secret is sealed with a key that this hub does not have"
            )
        try:
            return key.decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], about)
        except InvalidTag:
            raise Unavailable(
                "secrets_locked", "a secret cannot be opened: it is damaged"
            ) from None


def _id_of(key: bytes) -> str:
    """By which a key is told from others, and which says nothing of it."""
    return hashlib.sha256(b"machinehub sealing key" + key).hexdigest()[:16]


def read_keys(text: str) -> list[bytes]:
    """Keys in base64, one a line or parted by commas. Raises `ValueError`."""
    keys = []
    for each in text.replace(",", " ").split():
        try:
            key = base64.b64decode(each, validate=True)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise ValueError(f"a sealing key is {KEY_BYTES} bytes in base64")
        keys.append(key)
    return keys


class KeyRing:
    """Where the keys come from: a variable's text, or a file. A file of the hub's own (in its data
    folder) is made when a secret is set for the first time.
    """

    def __init__(self, text: str, file: Path, *, own: bool) -> None:
        self._text = text
        self._file = file
        self._own = own

    def keys(self, *, makes: bool = False) -> SealingKeys:
        """Raises `Unavailable` when there are none."""
        text = self._text
        if not text:
            try:
                text = self._file.read_text()
            except FileNotFoundError:
                text = ""
            except (OSError, UnicodeDecodeError) as error:
                raise _no_keys(f"{self._file} cannot be read: {error}") from None
        try:
            found = read_keys(text)
        except ValueError as error:
            raise _no_keys(str(error)) from None
        if not found and makes and self._own and not self._text:
            found = [self._add([])]
        if not found:
            raise _no_keys(
                "this hub has no key for secrets: set MACHINEHUB_SECRETS_KEY, or"
                " MACHINEHUB_SECRETS_KEY_FILE"
            )
        return SealingKeys(found)

    def renew(self) -> bool:
        """A new key from now on, if the file is the hub's own; those before it open what they
        sealed until `forget_old`.
        """
        if self._text or not self._own:
            return False
        self._add(read_keys(self._file.read_text()) if self._file.exists() else [])
        return True

    def forget_old(self) -> None:
        """Everything is sealed with the newest key."""
        self._write(read_keys(self._file.read_text())[:1])

    def _add(self, before: list[bytes]) -> bytes:
        new = random_bytes(KEY_BYTES)
        self._write([new, *before])
        return new

    def _write(self, keys: list[bytes]) -> None:
        """All or nothing, for nobody else's eyes."""
        unfinished = self._file.with_name(f"{self._file.name}.new")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for key in keys:
                file.write(base64.b64encode(key) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._file)
        folder = os.open(self._file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _no_keys(detail: str) -> Unavailable:
    return Unavailable("secrets_locked", detail)


class Secrets:
    """A `Vault` (outside.py)."""

    def __init__(self, store: SecretStore, ring: KeyRing, clock: Clock) -> None:
        self._store = store
        self._ring = ring
        self._clock = clock
        self._changing = asyncio.Lock()
        """Nothing is sealed with a key that is taken away just then."""

    async def set(self, project: ProjectId, name: str, value: str, hosts: list[str]) -> None:
        """Raises `BadRequest`, `Unavailable`."""
        check_secret(name, value, hosts)
        async with self._changing:
            keys = self._ring.keys(makes=True)
            sealed = keys.seal(value.encode(), _about(project, name))
            await self._store.put(
                project, name, hosts, sealed, keys.newest, now_ms=self._clock.now_ms()
            )

    async def delete(self, project: ProjectId, name: str) -> None:
        """Raises `NotFound`."""
        if not await self._store.delete(project, name):
            raise NotFound("no_such_secret", f"the project has no secret {name[:64]!r}")

    async def list(self, project: ProjectId) -> list[StoredSecret]:
        """All but what they are."""
        return await self._store.of_project(project)

    async def reveal(self, project: ProjectId, names: Collection[str]) -> dict[str, Secret]:
        """Those of these names that there are. Raises `Unavailable`."""
        found = [each for each in await self._store.of_project(project) if each.name in names]
        if not found:
            return {}
        keys = self._ring.keys()
        return {
            each.name: Secret(
                keys.unseal(each.sealed, _about(project, each.name), each.key_id).decode(),
                each.hosts,
            )
            for each in found
        }

    async def rotate(self) -> tuple[int, str]:
        """Seals everything anew with the newest key, of which the hub makes one if the keys are its
        own. How many secrets there are, and the key's id. Raises `Unavailable`.
        """
        async with self._changing:
            return await self._rotate()

    async def _rotate(self) -> tuple[int, str]:
        is_new = self._ring.renew()
        keys = self._ring.keys()
        count = 0
        for each in await self._store.all():
            about = _about(each.project, each.name)
            if each.key_id != keys.newest:
                value = keys.unseal(each.sealed, about, each.key_id)
                await self._store.reseal(each, keys.seal(value, about), keys.newest)
            count += 1
        if is_new and not [each for each in await self._store.all() if each.key_id != keys.newest]:
            self._ring.forget_old()
        return count, keys.newest


def _about(project: ProjectId, name: str) -> bytes:
    return f"{project}\0{name}".encode()


def check_secret(name: str, value: str, hosts: Collection[str]) -> None:
    """Raises `BadRequest`."""
    if not NAME.fullmatch(name):
        raise BadRequest(
            "invalid_secret", "a secret's name is letters, digits and underscores, at most 64"
        )
    if not 1 <= len(value) <= VALUE_CHARS_MAX or not value.isascii() or not value.isprintable():
        raise BadRequest(
            "invalid_secret",
            f"a secret is 1 to {VALUE_CHARS_MAX} printable characters of ASCII: it is a header's",
        )
    if len(hosts) > HOSTS_MAX:
        raise BadRequest("invalid_secret", f"a secret is for at most {HOSTS_MAX} hosts")
    for host in hosts:
        if "/" in host or (":" in host and not host.startswith("[")) or "]:" in host or host == "*":
            raise BadRequest("invalid_secret", f"{host[:200]!r} is no host, or *.host")
    check_allowed(list(hosts))

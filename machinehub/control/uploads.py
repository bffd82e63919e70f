"""Uploads: what a deployment must look like before anything is built, and what its content is
called.

Decides without I/O.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

import msgspec

from machinehub.calendar import CalendarEntry, check_calendar
from machinehub.edge.addresses import check_session_id
from machinehub.effects.hooks import Webhook, check_webhooks
from machinehub.egress.rules import EgressRules, check_egress
from machinehub.errors import BadRequest, TooLarge
from machinehub.ids import Digest
from machinehub.limits import Limits, MachineLimits, excessive, lowered
from machinehub.model import MachineSettings, Payloads
from machinehub.session.decide.events import check_event
from sandbox.protocol.access import Table
from sandbox.protocol.limits import GuestLimits, OwnLimits

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MODULE_ABI: Final = "guest-abi 1"
"""In place of the base image's digest, in the digest of a WASM module's content."""
MESSAGE_CHARS_MAX: Final = 1000


class Upload(msgspec.Struct, kw_only=True):
    """The body of `POST /api/v1/deployments`."""

    name: str
    entry: str
    files: dict[str, str]
    """Their text by path; of a .wasm file its base64."""
    message: str = ""
    activate: bool = True
    strict: bool = False
    """Whether a warning is an error."""
    payloads: Payloads = {}
    """What events carry besides their type, where the uploader knows: for the page's forms."""
    machine: MachineSettings = MachineSettings()
    limits: MachineLimits = MachineLimits()
    access: Table = []
    """Who may send what."""
    cron: list[CalendarEntry] = []
    """Events that sessions are sent at certain times."""
    egress: EgressRules = EgressRules()
    """What its machines may ask the world for."""
    webhooks: list[Webhook] = []
    """By what the world tells them of something."""
    private: bool | None = None
    """Whether the machine's sessions are for holders of connect tokens alone; None for as it was,
    or, of a new machine, as is usual here.
    """


@dataclass(frozen=True, slots=True)
class Source:
    """An upload that may be built."""

    upload: Upload
    module: bytes | None
    """Of a machine that comes as a WASM module (docs/guest-abi.md)."""
    limits: Limits
    """The hub's, with the version's own where those are lower."""

    @property
    def guest_limits(self) -> GuestLimits:
        """Those that are frozen into the image."""
        names = set(GuestLimits.__struct_fields__) - {"egress"}
        given = {name: getattr(self.limits, name) for name in names}
        return GuestLimits(**given, egress=int(bool(self.upload.egress.allow)))

    @property
    def own_limits(self) -> OwnLimits:
        """What the version says of its turns."""
        own = self.upload.limits
        return OwnLimits(
            event_cpu_ms=own.event_cpu_ms,
            start_cpu_ms=own.start_cpu_ms,
            snapshot_bytes=own.snapshot_bytes,
            emitted_bytes=own.emitted_bytes,
        )

    def digest(self, engine: str, base: str) -> Digest:
        """The name of the content: what was uploaded, what a script is built with, and the limits
        that are frozen into it. `engine` and `base` are digests.
        """
        upload = self.upload
        built_with = ("", MODULE_ABI) if self.module is not None else (engine, base)
        parts = [
            *built_with,
            upload.entry,
            sorted(upload.files.items()),
            upload.machine,
            upload.limits,
            self.guest_limits,
            self.limits.memory_bytes,
            *([upload.access] if upload.access else []),
            *(["cron", upload.cron] if upload.cron else []),
            *(["egress", upload.egress] if upload.egress != EgressRules() else []),
            *(["webhooks", upload.webhooks] if upload.webhooks else []),
        ]
        return Digest(hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()[:32])


def check_upload(upload: Upload, limits: Limits) -> Source:
    """Raises `BadRequest` or `TooLarge` for an upload that is wrongly named or too large; `limits`
    are the hub's.
    """
    check_name(upload.name)
    if len(upload.message) > MESSAGE_CHARS_MAX or "\0" in upload.message:
        raise BadRequest("invalid_message", f"a message has at most {MESSAGE_CHARS_MAX} characters")
    if (wrong := excessive(limits, upload.limits)) is not None:
        raise BadRequest("invalid_limits", f"the machine's own limits: {wrong}")
    check_calendar(upload.cron)
    check_egress(upload.egress)
    check_webhooks(upload.webhooks)
    for entry in upload.cron:
        check_event(entry.event_json, bytes_max=limits.event_bytes, depth_max=limits.event_depth)
        check_session_id(entry.session, chars_max=limits.session_id_chars)
    module = None
    if upload.entry.endswith(".wasm"):
        module = _module_of(upload, limits)
    else:
        _check_sizes(upload.files, limits)
    return Source(upload, module, lowered(limits, upload.limits))


def _check_sizes(files: dict[str, str], limits: Limits) -> None:
    packages = {path for path in files if "node_modules/" in path}
    for what, paths, files_max, bytes_max in (
        ("an upload", files.keys() - packages, limits.source_files, limits.source_bytes),
        ("npm packages", packages, limits.package_files, limits.package_bytes),
    ):
        if len(paths) > files_max:
            count = f"{len(paths)}{_most_of(paths)}"
            raise TooLarge(
                "source_too_large", f"the files of {what} are at most {files_max}, not {count}"
            )
        try:
            size = sum(len(path.encode()) + len(files[path].encode()) for path in paths)
        except UnicodeEncodeError:
            raise BadRequest("invalid_source", "a file is not Unicode text") from None
        if size > bytes_max:
            raise TooLarge(
                "source_too_large", f"the files of {what} have at most {bytes_max} bytes together"
            )


def _most_of(paths: set[str]) -> str:
    """Names the npm package that has the most of the files."""
    names = re.findall(r"node_modules/((?:@[^/\n]+/)?[^/\n]+)/", "\n".join(paths))
    if not names:
        return ""
    name, count = Counter(names).most_common(1)[0]
    return f" ({count} of them {name[:100]!r}: import parts of it, if it has any)"


def check_name(name: str) -> None:
    """Raises `BadRequest` for what no machine may be called."""
    if not NAME.fullmatch(name):
        raise BadRequest(
            "invalid_name",
            "a machine's name is 1 to 64 letters, digits, dots, dashes or underscores, and begins "
            "with"
            " a letter or digit",
        )


def upload_bytes_max(limits: Limits) -> int:
    """Of the body of a deployment: text may be escaped to twice its size, and base64 takes a third
    more.
    """
    return 2 * max(limits.source_bytes + limits.package_bytes, limits.module_bytes) + 65536


def _module_of(upload: Upload, limits: Limits) -> bytes:
    if list(upload.files) != [upload.entry]:
        raise BadRequest("invalid_source", "a WASM module is uploaded by itself")
    try:
        module = base64.b64decode(upload.files[upload.entry], validate=True)
    except ValueError:
        raise BadRequest("invalid_source", "a WASM module is uploaded as base64") from None
    if len(module) > limits.module_bytes:
        raise TooLarge("source_too_large", f"a WASM module has at most {limits.module_bytes} bytes")
    return module

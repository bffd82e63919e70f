"""Builds: an upload goes to a forge or a compiler, and what comes back is checked before it is
believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.errors import BuildFailed
from machinehub.model import Image
from sandbox.protocol.nesting import is_deeper_than

if TYPE_CHECKING:
    from machinehub.control.uploads import Source, Upload
    from machinehub.limits import Limits
    from machinehub.workers.pool import WorkerPool

DEFINITION_BYTES_MAX: Final = 4 * 1024 * 1024
DEFINITION_DEPTH_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Build:
    """What became of an upload."""

    image: Image
    definition: bytes
    """JSON"""
    code: bytes
    """Of a module: what it is compiled from, to be kept as an engine."""
    warnings: list[dict[str, Any]]
    """With `message`, and `file`, `line` and `column` where they are known."""
    bundle_us: int
    freeze_us: int


async def build(pool: WorkerPool, source: Source, limits: Limits) -> Build:
    """Bundles and freezes, or checks and compiles a module, storing nothing. `limits` are the
    hub's.

    Raises `BuildFailed`, `Unavailable`.
    """
    upload = source.upload
    if source.module is not None:
        module = await pool.builds.build_module(
            module=source.module,
            name=upload.name,
            cpu_ms=limits.build_cpu_ms,
            module_bytes_max=limits.module_bytes,
            memory_bytes_max=source.limits.memory_bytes,
            limits=source.guest_limits,
            own=source.own_limits,
            rules=upload.access,
        )
        image = Image(image=module.image, engine=module.engine, engine_code=module.compiled)
        definition = _checked(module.definition, upload, [])
        return Build(image, definition, module.code, [], module.check_us, module.compile_us)
    built = await pool.builds.build(
        entry=upload.entry,
        files=upload.files,
        cpu_ms=limits.build_cpu_ms,
        memory_bytes_max=source.limits.memory_bytes,
        bundle_bytes_max=limits.bundle_bytes,
        on_error=upload.machine.on_error,
        transitions=upload.machine.transitions,
        limits=source.guest_limits,
        own=source.own_limits,
        rules=upload.access,
    )
    warnings = [msgspec.structs.asdict(each) for each in built.warnings]
    return Build(
        Image(image=built.image, engine=pool.engine_and_base[0], template=pool.template),
        _checked(built.definition, upload, warnings),
        b"",
        warnings,
        built.bundle_us,
        built.freeze_us,
    )


def _checked(definition: bytes, upload: Upload, warnings: list[dict[str, Any]]) -> bytes:
    """A definition as a forge gave it, which has seen strangers' code: JSON, or the build is
    refused. With the version's own limits, the build's warnings, and what the upload says of
    payloads.
    """
    try:
        too_deep = is_deeper_than(definition, DEFINITION_DEPTH_MAX)
        if len(definition) > DEFINITION_BYTES_MAX or too_deep:
            raise BuildFailed(
                "definition_too_large",
                f"the machine's states and transitions take more than {DEFINITION_BYTES_MAX} "
                "bytes, or"
                " nest too deeply",
            )
        read = msgspec.json.decode(definition, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        raise BuildFailed("machine_throws", "the machine's definition cannot be read") from None
    more = {
        "limits": msgspec.to_builtins(upload.limits),
        "payloads": msgspec.to_builtins(upload.payloads),
        "rules": msgspec.to_builtins(upload.access),
        "cron": msgspec.to_builtins(upload.cron),
        "egress": msgspec.to_builtins(upload.egress),
        "webhooks": msgspec.to_builtins(upload.webhooks),
        "warnings": warnings,
    }
    said = {key: value for key, value in more.items() if value}
    if not said:
        return definition
    whole = msgspec.json.encode(read | said)
    if len(whole) > DEFINITION_BYTES_MAX:
        raise BuildFailed(
            "definition_too_large",
            f"the machine's definition with its payloads takes more than {DEFINITION_BYTES_MAX} "
            "bytes",
        )
    return whole

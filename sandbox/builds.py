"""Builds images from uploads, and lists the files that a project's bundle needs.

Error messages that contain an uploader's text are cut to a maximum length.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from sandbox import bundler, places
from sandbox.compression import pack
from sandbox.foreign import build_module, compile_module
from sandbox.forge import BuildError, forge_image
from sandbox.protocol.messages import (
    Build,
    BuildFailed,
    BuildMessage,
    BuildModule,
    Built,
    Compile,
    EngineGiven,
    GiveEngine,
    Inputs,
    InputsFound,
    ToHub,
)

if TYPE_CHECKING:
    from sandbox.compression import Template
    from sandbox.engine import Engine, Module
    from sandbox.forge import Guest
    from sandbox.protocol.ids import Ticket

ERRORS_MAX, ERROR_CHARS_MAX, FILE_CHARS_MAX = 50, 2_000, 300
"""Of a build that failed: what is shown."""
MISSING_MAX = 50
"""Names that nothing implements, of which a place is looked for."""


class Builds:
    """What a forge does. `guest`, `esbuild` and `template` are None in a process that compiles
    modules.
    """

    def __init__(
        self,
        engine: Engine,
        guest: Guest | None,
        esbuild: Module | None,
        template: Template | None = None,
    ) -> None:
        self._template = template
        self._engine = engine
        self._guest = guest
        self._esbuild = esbuild

    def build(self, request: Build, answers: list[ToHub]) -> None:
        answers.append(self._build(request))

    def _build(self, build: Build) -> ToHub:
        started = time.perf_counter_ns()
        absent: list[BuildMessage] = []
        assert self._guest is not None
        assert self._esbuild is not None
        try:
            bundle = bundler.bundle(self._engine, self._esbuild, build.entry, build.files)
            if len(bundle.script.encode()) > build.bundle_bytes_max:
                raise BuildError(
                    "bundle_too_large",
                    [BuildMessage(f"the bundle has more than {build.bundle_bytes_max} bytes")],
                )
            bundled = time.perf_counter_ns()
            absent = [each for each in bundle.warnings if "is not in machines" in each.message]
            image, definition, report = forge_image(
                self._engine,
                self._guest,
                bundle.script,
                source_map=bundle.source_map,
                cpu_s=build.cpu_ms / 1000,
                memory_bytes_max=build.memory_bytes_max,
                on_error=build.on_error,
                transitions=build.transitions,
                limits=build.limits,
                own=build.own,
                rules=build.rules,
            )
        except BuildError as error:
            errors = [places.explained(each, build.files, build.entry) for each in error.errors]
            if any("is not in machines" in each.message for each in errors):
                errors += absent
            return _build_failed(build.ticket, BuildError(error.code, errors))
        except Exception as error:  # noqa: BLE001 - a stranger's file must not end the forge
            return BuildFailed(
                build.ticket,
                "machine_throws",
                [BuildMessage(f"the file cannot be built ({type(error).__name__})")],
            )
        assert self._template is not None
        packed = self._template.pack(image)
        frozen = time.perf_counter_ns()
        warnings = [
            *bundle.warnings,
            *map(BuildMessage, report.warnings),
            *(
                places.warning_about(each, build.files, build.entry)
                for each in report.missing[:MISSING_MAX]
                if each.kind in places.KEYS
            ),
        ]
        return Built(
            build.ticket,
            packed,
            msgspec.json.encode(definition),
            _cut(warnings),
            (bundled - started) // 1000,
            (frozen - bundled) // 1000,
        )

    def inputs(self, request: Inputs, answers: list[ToHub]) -> None:
        assert self._esbuild is not None
        root = Path(request.root)
        try:
            found = bundler.inputs_of(self._engine, self._esbuild, request.entry, root)
        except BuildError as error:
            answers.append(_build_failed(request.ticket, error))
        else:
            answers.append(InputsFound(request.ticket, found))

    def build_module(self, request: BuildModule, answers: list[ToHub]) -> None:
        answers.append(build_module(self._engine, request))

    def compile(self, request: Compile, answers: list[ToHub]) -> None:
        answers.append(compile_module(self._engine, request))

    def give_engine(self, request: GiveEngine, answers: list[ToHub]) -> None:
        assert self._guest is not None
        assert self._template is not None
        engine, template = pack(self._guest.engine_wasm), pack(self._template.data)
        given = (self._guest.engine_digest, engine, self._template.digest, template)
        answers.append(EngineGiven(request.ticket, *given))


def _build_failed(ticket: Ticket, error: BuildError) -> BuildFailed:
    return BuildFailed(ticket, error.code, _cut(error.errors))


def _cut(messages: list[BuildMessage]) -> list[BuildMessage]:
    """Cut to size: a stranger wrote names and messages."""
    return [
        msgspec.structs.replace(
            each,
            message=each.message[:ERROR_CHARS_MAX],
            file=each.file[:FILE_CHARS_MAX] if each.file else each.file,
        )
        for each in messages[:ERRORS_MAX]
    ]

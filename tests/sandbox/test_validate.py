"""Modules of strangers: what is not let in, and what its author is told."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest
import wasmtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from machinehub.limits import Limits
from sandbox import validate
from sandbox.leb128 import encode_unsigned
from sandbox.wasm_reader import BadModule
from tests.sandbox.test_modules import MODULE_BYTES, PAGES, deploy, machine_of, raw, wat
from tests.support import COUNTER, Client, running_hub

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "text": b"hello",
    "a program": b"\x7fELF" + bytes(100),
    "compiled code": b"\x7fELF\x02\x01\x01\xc8" + bytes(1000),
    "a component": b"\0asm\x0d\0\1\0",
    "a cut-off module": wat()[:-3],
    "a start function": wat(fields="(func $s) (start $s)"),
    "an import": wasmtime.wat2wasm(
        '(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32))) (memory (export '
        '"memory") 1))'
    ),
    "an imported memory": wasmtime.wat2wasm('(module (import "image" "memory" (memory 1)))'),
    "a giant memory": wat(memory="65536"),
    "more memory than it may have": wat(memory="257"),
    "a shared memory": raw((5, b"\1\3\2\x0a")),
    "a 64-bit memory": raw((5, b"\1\4\2")),
    "two memories": raw((5, b"\2\0\2\0\2")),
    "no memory": wasmtime.wat2wasm('(module (func (export "step")))'),
    "a giant table": wat(fields="(table 100000000 funcref)"),
    "two tables": wat(fields="(table 1 funcref) (table 1 funcref)"),
    "a table of references": wat(fields="(table 1 externref)"),
    "a changing table": wat(
        fields="(table 2 funcref)", step="(table.copy (i32.const 0) (i32.const 1) (i32.const 1))"
    ),
    "passive data": wat(fields='(data "x")'),
    "passive elements": wat(fields="(table 1 funcref) (elem func $answer)"),
    "data outside the memory": wat(fields='(data (i32.const 131072) "x")'),
    "data at a negative place": wat(fields='(data (i32.const -1) "x")'),
    "elements outside the table": wat(fields="(table 1 funcref) (elem (i32.const 1) $answer)"),
    "vectors": wat(step="(drop (v128.const i32x4 0 0 0 0))"),
    "references": wat(step="(drop (ref.null func))"),
    "tail calls": wat(step="(return_call $answer)"),
    "atomics": raw((10, b"\4" + b"\x06\0\xfe\3\0\x0b" * 1)),
    "exceptions": wat(fields="(tag)"),
    "deep nesting": wat(step="(block " * 2000 + ")" * 2000),
    "a function of a megabyte": wat(fields="(func " + "nop " * 200_000 + ")"),
    "a million variables": raw((10, b"\4\x08\1\xc0\x84\x3d\x7f\x0b")),
    "missing functions": wasmtime.wat2wasm(
        '(module (memory (export "memory") 1) (func (export "step")))'
    ),
    "a step of another type": wat().replace(b"step", b"stop"),
    "a section of a gigabyte": b"\0asm\1\0\0\0\x0a\xff\xff\xff\xff\x03",
    "sections out of order": b"\0asm\1\0\0\0\x0a\1\0\1\1\0",
    "a number without end": b"\0asm\1\0\0\0\1" + b"\xff" * 50,
    "ten million types": b"\0asm\1\0\0\0\1\4" + encode_unsigned(10_000_000),
    "two exports of one name": raw((7, b"\2\1a\0\0\1a\0\0")),
    "a stack that does not add up": raw(
        (10, b"\4\3\0\x1a\x0b\3\0\x1a\x0b\3\0\x1a\x0b\3\0\x1a\x0b")
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_not_let_in(name: str) -> None:
    """Refused while it is read; what does not add up, while it is compiled."""
    with pytest.raises(wasmtime.WasmtimeError if "add up" in name else BadModule):
        wasmtime.Module(
            wasmtime.Engine(),
            validate.split(
                validate.read_module(HOSTILE[name], pages_max=PAGES, bytes_max=MODULE_BYTES)
            ),
        )


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (HOSTILE["an import"], "it imports wasi_snapshot_preview1.fd_write"),
        (
            wasmtime.wat2wasm(
                '(module (memory (export "memory") 1) (func (export "alloc") (param i64)))'
            ),
            r"alloc\(i32\) -> \(i32\); it exports \(i64\) -> \(\)",
        ),
        (HOSTILE["missing functions"], "it exports none"),
    ],
)
def test_authors_are_told_what_is_wrong(module: bytes, words: str) -> None:
    with pytest.raises(BadModule, match=words):
        validate.read_module(bytes(module), pages_max=PAGES, bytes_max=MODULE_BYTES)


@pytest.mark.parametrize(
    "name", ["text", "compiled code", "an import", "a giant memory", "a stack that does not add up"]
)
async def test_who_uploads_one_is_told(client: Client, name: str) -> None:
    before = client.worker_pids()
    response = await deploy(client, HOSTILE[name], "hostile")
    assert (response.status_code, response.json()["code"]) == (422, "invalid_module"), response.text
    assert set(before) <= set(client.worker_pids())
    assert (await client.http.get("/api/v1/machines/hostile")).status_code == 404


@pytest.mark.parametrize(
    ("module", "limits", "code"),
    [
        (wat(fields='(func (export "_initialize") (loop (br 0)))'), {}, "build_cpu_exceeded"),
        (wat(fields='(func (export "_initialize") unreachable)'), {}, "machine_throws"),
        (wat(fields='(func $r (export "_initialize") (call $r))'), {}, "stack_exceeded"),
        (
            wat(fields='(func (export "describe") (result i64) (i64.const -1))'),
            {},
            "machine_throws",
        ),
        (
            wat(fields='(func (export "describe") (result i64) (i64.const 3))'),
            {},
            "invalid_definition",
        ),
        (
            wat(
                fields=(
                    '(data (i32.const 9000) "{\\"id\\":1}") (func (export "describe") (result '
                    "i64) (i64.const 38654705664008))"
                )
            ),
            {},
            "invalid_definition",
        ),
        (b"x" * 1100, {"module_bytes": 1000}, "source_too_large"),
    ],
)
async def test_what_cannot_be_loaded(
    tmp_path: Path, module: bytes, limits: dict[str, int], code: str
) -> None:
    async with running_hub(
        tmp_path, workers=1, limits=Limits(build_cpu_ms=200, **limits)
    ) as client:
        response = await deploy(client, module)
        assert response.status_code in (413, 422)
        assert (
            response.json()["code"] in (code, "machine_throws")
            if code == "stack_exceeded"
            else response.json()["code"] == code
        ), response.text
        assert (await client.deploy(COUNTER)) != ""


async def test_a_hub_may_take_larger_modules(client: Client, tmp_path: Path) -> None:
    filler = '(data (i32.const 70000) "' + "x" * (1100 * 1024) + '")'
    large = wat(memory="30 40", fields=filler)
    assert len(large) > Limits().module_bytes
    refused = await deploy(client, large, "too-large")
    assert (refused.status_code, refused.json()["code"]) == (413, "source_too_large")
    raised = Limits(module_bytes=2 * 1024 * 1024)
    async with running_hub(tmp_path, limits=raised) as roomy:
        machine = await machine_of(roomy, large)
        answer = await roomy.http.get(f"/{machine}/s")
        assert answer.json()["snapshot"]["value"] == "on"


async def test_only_base64_by_itself_is_a_module(client: Client) -> None:
    for files in (
        {"m.wasm": "not base64!"},
        {"m.wasm": base64.b64encode(wat()).decode(), "other.ts": ""},
    ):
        response = await client.http.post(
            "/api/v1/deployments", json={"name": "m", "entry": "m.wasm", "files": files}
        )
        assert (response.status_code, response.json()["code"]) == (400, "invalid_source")


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_module_is_read_or_refused(data: st.DataObject) -> None:
    """Whatever a module is changed to, reading it says yes or no; and what it says yes to, wasmtime
    has nothing against, or says so.
    """
    module = bytearray(
        wat(
            step="(if (i32.const 1) (then nop) (else nop))",
            fields="(table 2 funcref) (elem (i32.const 0) $answer)",
        )
    )
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(8, len(module) - 1))
        match data.draw(st.sampled_from(["flip", "insert", "drop", "long"])):
            case "flip":
                module[at] = data.draw(st.integers(0, 255))
            case "insert":
                module.insert(at, data.draw(st.integers(0, 255)))
            case "drop" if len(module) > 20:
                del module[at]
            case _:
                module[at:at] = b"\xff\xff\xff\xff\x0f"
    read_and_compile(bytes(module))


def read_and_compile(module: bytes) -> None:
    try:
        code = validate.split(validate.read_module(module, pages_max=PAGES, bytes_max=MODULE_BYTES))
    except BadModule:
        return
    try:
        compiled = wasmtime.Module(wasmtime.Engine(), code)
    except wasmtime.WasmtimeError:
        return
    assert [(each.module, each.name) for each in compiled.imports] == [("image", "memory")]
    assert {
        each.name for each in compiled.exports if not each.name.startswith("machinehub.")
    } <= set(validate._CALLS)

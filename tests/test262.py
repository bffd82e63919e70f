"""test262 (the ECMAScript conformance suite) on the engine that ships, with our changes to it:
`make test262 FROM=<a checkout>`.

    python -m tests.test262 CHECKOUT [--every N] [--show] [--frozen]

The suite is not on the package registries, so `make test` does not run it: there,
`test_language.py` compares the engine with Node's. Scripts are evaluated in a thawed base image,
which has the parser that machines have lost, one image each. With `--frozen` built-ins and harness
belong to an immortal image (docs/engine.md), and cycles are collected often. Left out: what a machine cannot have
anyway (modules, shared memory, other realms and agents, `Intl`), and files that try the parser's
strict mode only. Source of how files are read: test262's INTERPRETING.md.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

import yaml

from sandbox.engine import Engine, Instance
from sandbox.forge import GC_SLACK_BYTES, Guest, load_guest
from sandbox.traps import Trap
from sandbox.worker import GUEST
from tests.support import CACHE

CPU_S: Final = 2.0
MEMORY_BYTES: Final = 16 * 1024 * 1024
"""A session's, which the image names; some tests need more."""
COLLECT_AFTER_BYTES: Final = 4096
NOW_NS: Final = 1_700_000_000_000_000_000
_FRONT: Final = re.compile(r"/\*---(.*?)---\*/", re.DOTALL)
_WITHOUT: Final = (
    "$262.createRealm",
    "$262.agent",
    "$262.evalScript",
    "$262.detachArrayBuffer",
    "detachArrayBuffer.js",
    "$262.IsHTMLDDA",
    "$262.AbstractModuleSource",
    "SharedArrayBuffer",
    "Atomics",
    "import(",
    "import.",
    "$262.gc",
)
_FEATURES_WITHOUT: Final = {
    "SharedArrayBuffer",
    "Atomics",
    "dynamic-import",
    "import-defer",
    "source-phase-imports",
    "cross-realm",
    "host-gc-required",
    "IsHTMLDDA",
    "Temporal",
    "ShadowRealm",
    "tail-call-optimization",
}
_SAID: Final = "globalThis.said"
_PRINT: Final = (
    f"var $262 = {{ global: globalThis }}; {_SAID} = ''; var print = (text) => {{ {_SAID} += "
    f"text; }};\n"
)


class Suite:
    def __init__(self, folder: Path, *, frozen: bool) -> None:
        self._folder = folder
        self._frozen = frozen
        self._engine = Engine(CACHE)
        self._guest: Guest = load_guest(
            self._engine, (GUEST / "engine.wasm").read_bytes(), (GUEST / "base.wasm").read_bytes()
        )
        self.harness = cache(lambda name: (folder / "harness" / name).read_text())

    def files(self, every: int) -> list[Path]:
        found = [
            path
            for part in ("language", "built-ins", "annexB")
            for path in sorted((self._folder / "test" / part).rglob("*.js"))
            if "_FIXTURE" not in path.name
        ]
        return found[::every]

    def run(self, path: Path) -> str | None:
        """What went wrong, empty when nothing did; None for a file that is left out."""
        text = path.read_text()
        front = _FRONT.search(text)
        about = yaml.safe_load(front[1]) if front else {}
        flags = about.get("flags", [])
        if (
            {"module", "raw", "CanBlockIsTrue"} & set(flags)
            or _FEATURES_WITHOUT & set(about.get("features", []))
            or any(word in text for word in _WITHOUT)
        ):
            return None
        scripts = [
            _PRINT,
            *(
                self.harness(name)
                for name in (
                    "assert.js",
                    "sta.js",
                    *(["doneprintHandle.js"] if "async" in flags else []),
                    *about.get("includes", []),
                )
            ),
        ]
        instance = self._engine.thaw(
            self._guest.base, self._guest.engine, memory_bytes_max=MEMORY_BYTES
        )
        self._engine.watchdog.start(CPU_S)
        try:
            thrown = self._evaluate(instance, "\n".join(scripts))
            assert not thrown, thrown
            if self._frozen:
                instance.call("settle_heap", GC_SLACK_BYTES)
                instance.call("collect_after", COLLECT_AFTER_BYTES)
            thrown = self._evaluate(
                instance, ('"use strict";\n' if "onlyStrict" in flags else "") + text
            )
            if (negative := about.get("negative")) is not None:
                return (
                    ""
                    if negative["type"] in thrown or (thrown and negative["type"] == "Test262Error")
                    else f"{negative['type']} expected, not {thrown or 'a success'}"
                )
            if thrown or "async" not in flags:
                return thrown
            self._run_jobs(instance)
            said = self._evaluate(instance, f"throw new Error({_SAID})")
            return "" if "Test262:AsyncTestComplete" in said and "Failure" not in said else said
        except Trap as trap:
            return trap.code
        finally:
            self._engine.watchdog.stop()
            instance.close()

    def _evaluate(self, instance: Instance, script: str) -> str:
        """What a script throws, as name and message; empty when nothing."""
        instance.call("set_clock", NOW_NS)
        code = script.encode("utf-8", "surrogatepass")
        at, name = instance.call("alloc", len(code) + 1), instance.call("alloc", 5)
        instance.write(at, code + b"\0")
        instance.write(name, b"test\0")
        value = instance.call("evaluate", at, len(code), name)
        if value >= 0:
            return ""
        handles = self._guest.handles
        length = instance.call(
            "call_with_value", handles.explain, -value, handles.io, handles.io_bytes
        )
        return instance.read(handles.io, length).decode("utf-8", "replace")

    def _run_jobs(self, instance: Instance) -> None:
        """An input that no machine is there to take: after it, as after every input, the promise
        jobs run.
        """
        handles = self._guest.handles
        for _ in range(20):  # jobs that a timer starts are not among them: nobody fires timers here
            data = b'[1,1,{"type":"x"},null]'
            instance.write_io(handles.io, data)
            instance.step(
                step=handles.step,
                collect=handles.collect,
                io=handles.io,
                io_bytes=handles.io_bytes,
                length=len(data),
                now_ns=NOW_NS,
                jobs=10_000,
            )


def main() -> int:
    arguments = argparse.ArgumentParser(prog="tests.test262")
    arguments.add_argument("checkout", type=Path)
    arguments.add_argument("--every", type=int, default=1, help="only every so manieth file")
    arguments.add_argument("--show", action="store_true", help="each failure")
    arguments.add_argument(
        "--frozen", action="store_true", help="all that a test finds belongs to an immortal image"
    )
    options = arguments.parse_args()
    suite = Suite(options.checkout, frozen=options.frozen)
    passed, failed, left_out = Counter[str](), Counter[str](), 0
    for path in suite.files(options.every):
        name = path.relative_to(options.checkout / "test")
        part = "/".join(name.parts[:2])
        wrong = suite.run(path)
        if wrong is None:
            left_out += 1
        elif wrong:
            failed[part] += 1
            if options.show:
                print(f"{name}: {wrong[:200]}", flush=True)
        else:
            passed[part] += 1
    for part in sorted(passed | failed):
        print(f"{part}: {passed[part]} of {passed[part] + failed[part]}")
    print(f"{passed.total()} passed, {failed.total()} failed, {left_out} left out")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

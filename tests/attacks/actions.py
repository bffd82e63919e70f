"""Attacks by a machine's own code, as a table: what an action of event X does, and by which code
the event is refused.

The rows are those of docs/security.md. `tests/sandbox/test_instance.py` looks at the memory that is left,
`test_machines.py` at what clients see.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Attack(NamedTuple):
    row: int
    name: str
    action: str
    codes: str
    """Those that it may end with, between blanks. What gives up first may depend on the processor.
    """

    @property
    def id(self) -> str:
        return f"{self.row}: {self.name}"

    @property
    def expected(self) -> list[str]:
        return self.codes.split()


_ANY_LIMIT: Final = "cpu_exceeded memory_exceeded stack_exceeded machine_error"
_NATIVE: Final = "cpu_exceeded memory_exceeded machine_error"

ACTIONS: Final = [
    Attack(1, "an endless loop", "for (;;);", "cpu_exceeded"),
    Attack(
        1,
        "one that is not caught",
        "for (;;) try { for (;;); } finally { continue }",
        "cpu_exceeded",
    ),
    Attack(1, "in a getter", "({ get x() { for (;;); } }).x", "cpu_exceeded"),
    Attack(1, "in a comparator", "[2, 1].sort(() => { for (;;); })", "cpu_exceeded"),
    Attack(
        1,
        "in a generator",
        "function* g() { for (;;) yield 1 } for (const x of g());",
        "cpu_exceeded",
    ),
    Attack(1, "in a conversion", "'' + { toString() { for (;;); } }", "cpu_exceeded"),
    Attack(2, "endless recursion", "const f = () => f() + 1; f()", "machine_error"),
    Attack(
        2,
        "caught and repeated",
        "for (;;) try { (function f() { f(); })() } catch {}",
        "cpu_exceeded",
    ),
    Attack(
        2, "a recursive getter", "const o = { get x() { return this.x } }; o.x", "machine_error"
    ),
    Attack(
        2,
        "a recursive toJSON",
        "const o = { toJSON() { return [o, o] } }; JSON.stringify(o)",
        _ANY_LIMIT,
    ),
    Attack(
        2,
        "a chain of proxies",
        "let p = {}; for (let i = 0; i < 1e5; i++) p = new Proxy(p, {}); p.x",
        _ANY_LIMIT,
    ),
    Attack(
        2,
        "a deep regular expression",
        "new RegExp('('.repeat(50000) + ')'.repeat(50000)).test('x')",
        _ANY_LIMIT,
    ),
    Attack(2, "deep JSON", "JSON.parse('['.repeat(1e5) + ']'.repeat(1e5))", _ANY_LIMIT),
    Attack(
        2,
        "a deep comparison",
        "let a = 1; for (let i = 0; i < 1e5; i++) a = [a]; String(a)",
        _ANY_LIMIT,
    ),
    Attack(
        3, "a regular expression that goes back", "/^(a+)+$/.test('a'.repeat(60) + 'b')", _NATIVE
    ),
    Attack(3, "joining holes", "Array(2 ** 28).join('x')", _NATIVE),
    Attack(
        3,
        "a power of a big number",
        "let b = 3n; for (;;) b = b ** 9n % (1n << 40000n)",
        "cpu_exceeded",
    ),
    Attack(3, "one call for a big number", "3n ** (10n ** 7n)", _NATIVE),
    Attack(3, "spelling a big number", "((1n << 1000000n) - 1n).toString()", _NATIVE),
    Attack(3, "filling", "const a = new Uint8Array(4e6); for (;;) a.fill(1)", "cpu_exceeded"),
    Attack(
        3,
        "copying within",
        "const a = new Uint8Array(4e6); for (;;) a.copyWithin(1, 0)",
        "cpu_exceeded",
    ),
    Attack(3, "slicing", "const a = new Uint8Array(2e6); for (;;) a.slice(0)", "cpu_exceeded"),
    Attack(
        3,
        "sorting",
        (
            "const a = Array.from({ length: 1e5 }, (_, i) => (i * 7919) % 1e5); for (;;) a.sort(() "
            "=> Math.random() - 0.5)"
        ),
        "cpu_exceeded",
    ),
    Attack(3, "searching", "const s = 'a'.repeat(2e6); for (;;) s.indexOf('b')", "cpu_exceeded"),
    Attack(4, "doubling a string", "let s = 'x'; for (;;) s += s", _NATIVE),
    Attack(4, "repeating a string", "'x'.repeat(2 ** 29)", _NATIVE),
    Attack(
        4,
        "arrays",
        "const a = []; for (;;) a.push(new Array(1000).fill(1))",
        "memory_exceeded cpu_exceeded",
    ),
    Attack(
        4,
        "typed arrays, caught",
        "const a = []; for (;;) try { a.push(new Uint8Array(1e6)) } catch {}",
        "memory_exceeded",
    ),
    Attack(4, "one big buffer", "new Uint8Array(2 ** 30)", "memory_exceeded"),
    Attack(4, "a map", "const m = new Map(); for (let i = 0; ; i++) m.set(i, {})", _NATIVE),
    Attack(4, "symbols", "const a = []; for (let i = 0; ; i++) a.push(Symbol('s' + i))", _NATIVE),
    Attack(
        4, "names of properties", "const o = {}; for (let i = 0; ; i++) o['k' + i] = i", _NATIVE
    ),
    Attack(4, "functions", "const a = []; for (;;) a.push(() => a)", _NATIVE),
    Attack(
        5,
        "a flood of microtasks",
        "const again = () => queueMicrotask(again); again()",
        "jobs_exceeded",
    ),
    Attack(
        5,
        "a chain of promises",
        "const again = () => Promise.resolve().then(again); again()",
        "jobs_exceeded",
    ),
    Attack(
        5,
        "a thenable that is itself",
        "const t = { then(r) { r(t) } }; Promise.resolve(t)",
        "jobs_exceeded",
    ),
    Attack(
        5,
        "a hundred thousand promises",
        "for (let i = 0; i < 1e5; i++) Promise.resolve().then(() => {})",
        "jobs_exceeded cpu_exceeded memory_exceeded",
    ),
    Attack(5, "an endless job", "queueMicrotask(() => { for (;;); })", "cpu_exceeded"),
    Attack(5, "an async loop", "(async () => { for (;;) await null; })()", "jobs_exceeded"),
    Attack(
        6,
        "a hundred thousand timers",
        "for (let i = 0; i < 1e5; i++) setTimeout(() => {}, 1000)",
        "timers_exceeded",
    ),
    Attack(
        6,
        "more timers, caught",
        "for (let i = 0; i < 2000; i++) try { setTimeout(() => {}, 1000) } catch {}",
        "timers_exceeded",
    ),
    Attack(
        6,
        "a thousand intervals and one",
        "for (let i = 0; i < 1001; i++) setInterval(() => {}, 1)",
        "timers_exceeded",
    ),
    Attack(10, "eval", "eval('1')", "machine_error"),
    Attack(10, "indirect eval", "(0, eval)('1')", "machine_error"),
    Attack(10, "Function", "new Function('return 1')()", "machine_error"),
    Attack(10, "a function's constructor", "(() => {}).constructor('return 1')()", "machine_error"),
    Attack(
        10,
        "an async function's constructor",
        "(async () => {}).constructor('1')()",
        "machine_error",
    ),
    Attack(
        10, "a generator's constructor", "(function* () {}).constructor('1')()", "machine_error"
    ),
    Attack(
        10,
        "an async generator's constructor",
        "(async function* () {}).constructor('1')()",
        "machine_error",
    ),
    Attack(
        10,
        "a chain of constructors",
        "globalThis.constructor.constructor('return 1')()",
        "machine_error",
    ),
    Attack(
        10, "a bound constructor", "Reflect.construct(Function.bind(null), ['1'])", "machine_error"
    ),
    Attack(
        10, "a constructor through a proxy", "new (new Proxy(Function, {}))('1')", "machine_error"
    ),
    Attack(
        10,
        "an inherited constructor",
        "class F extends Function { constructor() { super('return 1') } } new F()()",
        "machine_error",
    ),
    Attack(10, "a timer's text", "setTimeout('1')", "machine_error"),
    Attack(10, "process", "process.exit()", "machine_error"),
    Attack(10, "std", "std.exit()", "machine_error"),
    Attack(10, "os", "os.exec()", "machine_error"),
    Attack(10, "WebAssembly", "new WebAssembly.Module()", "machine_error"),
    Attack(10, "importScripts", "importScripts('x')", "machine_error"),
    Attack(10, "shared memory", "new SharedArrayBuffer(8)", "machine_error"),
    Attack(10, "Atomics", "Atomics.wait()", "machine_error"),
    Attack(11, "throwing null", "throw null", "machine_error"),
    Attack(11, "throwing a symbol", "throw Symbol('x')", "machine_error"),
    Attack(11, "throwing an empty proxy", "throw new Proxy({}, {})", "machine_error"),
    Attack(
        11,
        "throwing a proxy that loops",
        "throw new Proxy({}, { get() { for (;;); } })",
        "cpu_exceeded",
    ),
    Attack(
        11,
        "throwing a revoked proxy",
        "const { proxy, revoke } = Proxy.revocable({}, {}); revoke(); throw proxy",
        "machine_error",
    ),
    Attack(
        11,
        "a message of ten megabytes",
        "throw new Error('x'.repeat(1e7))",
        "machine_error memory_exceeded cpu_exceeded",
    ),
    Attack(
        11,
        "a message that loops",
        (
            "const e = new Error(); Object.defineProperty(e, 'message', { get() { for (;;); } }); "
            "throw e"
        ),
        "cpu_exceeded",
    ),
    Attack(
        11,
        "a message that throws",
        (
            "const e = new Error(); Object.defineProperty(e, 'message', { get() { throw e } }); "
            "throw e"
        ),
        "machine_error",
    ),
    Attack(
        11,
        "a message of control characters",
        r"throw new Error('\u001b[2J\r\n\u202e\u0000<b>')",
        "machine_error",
    ),
    Attack(
        11,
        "a stack of one's own",
        "const e = new Error('x'); e.stack = 'machine.js:1:1\\n/etc/passwd:1:1'; throw e",
        "machine_error",
    ),
]
"""In an action of event X, each ending in a refusal."""

POLLUTIONS: Final = [
    "Object.prototype.toJSON = () => 'x'",
    "Array.prototype.push = () => 0",
    "JSON.stringify = () => 'garbage'",
    "JSON.parse = () => null",
    "Object.defineProperty(Array.prototype, 0, { set() { throw 1 } })",
    "Map.prototype.get = () => { throw 1 }",
    "Map.prototype.set = () => { throw 1 }",
    "String.prototype.startsWith = () => true",
    "Object.defineProperty(Object.prototype, 'fault', { value: { code: 'x', message: 'y' } })",
    "for (const k of Object.getOwnPropertyNames(globalThis)) try { delete globalThis[k] } catch {}",
    "Object.freeze(Object.prototype); Object.freeze(Array.prototype)",
    "Promise.prototype.then = () => { throw 1 }",
    "Symbol.iterator in Array.prototype && delete Array.prototype[Symbol.iterator]",
    "Date.now = () => { throw 1 }",
    "Reflect.apply = () => { throw 1 }",
    "Function.prototype.call = () => { throw 1 }",
    "RegExp.prototype.exec = () => { throw 1 }",
    "Set.prototype.forEach = () => { throw 1 }",
    "Object.defineProperty(Object.prototype, 'then', { get() { throw 1 } })",
    "Object.setPrototypeOf(Object.prototype, null)",
    (
        "for (const k of Reflect.ownKeys(globalThis)) try { Object.defineProperty(globalThis, k, { "
        "value: 1 }) } catch {}"
    ),
    "Object.defineProperty(Object.prototype, 'type', { get: () => 'presence.joined', set() {} })",
    "Number.prototype.toString = () => '],[', String.prototype.toString = () => 'x'",
    "Object.prototype.code = 'unavailable'; Object.prototype.at = '1:1'",
    "Object.defineProperty(Array.prototype, 'length', { get: () => 0 })",
]
"""Changes to the built-in objects, which the prelude shares a realm with."""

UNSHOWABLE: Final = {
    "a cycle": "(() => { const c = { n: 0 }; c.self = c; return c })()",
    "a big number": "({ n: 1n })",
    "a getter that loops": "({ get n() { for (;;); } })",
    "a getter that throws": "({ get n() { throw 1 } })",
    "a large one": "({ n: 'x'.repeat(300000) })",
    "a very large one": "({ n: Array(1000).fill('x'.repeat(5000)) })",
    "64 MB": "({ n: 'x'.repeat(2 ** 26) })",
    "a deep one": "(() => { let c = {}; for (let i = 0; i < 1e5; i++) c = { c }; return { c } })()",
    "a revoked proxy": (
        "(() => { const { proxy, revoke } = Proxy.revocable({}, {}); revoke(); return { proxy } "
        "})()"
    ),
    "a proxy that loops": "({ p: new Proxy({}, { ownKeys() { for (;;); } }) })",
    "a proxy without end": "({ p: new Proxy([], { get: (_, k) => k === 'length' ? 2 ** 31 : 1 }) })",
    "toJSON that loops": "({ toJSON() { for (;;); } })",
    "toJSON that spawns itself": "({ n: { toJSON() { return { m: this } } } })",
}
"""Contexts that cannot be shown: the session does not begin, or the event is refused."""

UNSHOWABLE_CODES: Final = (
    "snapshot_not_json",
    "snapshot_too_large",
    "cpu_exceeded",
    "memory_exceeded",
    "stack_exceeded",
    "machine_error",
)

"""What `machinehub types` reads of TypeScript, as people write it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machinehub.cli.types import typescript
from machinehub.cli.typescript import types_said
from tests.cli.test_types import tsc

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.core
@pytest.mark.parametrize(
    "source",
    [
        "",
        "export default 1",
        "export default setup({ types: 1 })",
        "export default setup({ types: {} as A })",
        "export default (" * 300,
        "const a = b; const b = a; export default a;",
        'import x from "./m"; export default x;',
        "type A = { a: A }; export default createMachine({ types: {} as A })",
        "\0\ufeff}{",
    ],
)
def test_any_source_can_be_read(source: str) -> None:
    types_said({"m.ts": source}, "m.ts")


DEFINITION = {"id": "m", "events": ["GO"], "root": {"id": "m", "key": "m", "type": "atomic"}}


OTHER = {
    "other.ts": (
        "export interface Base { b: number } export type Ev = { type: 'GO' }; export * from "
        "'./more'; export { Deep as Renamed } from './more'; export default interface Main { m: "
        "1 }"
    ),
    "more.ts": "export interface Deep { d: 'deep' }",
}


STYLES = [
    # what stands before the machine, its context, an expression of `ctx` that has to compile; None:
    # it is said that something is unknown
    (
        "interface Ctx { a: number } interface Ctx { b: string }",
        "Ctx",
        "ctx.a.toFixed() + ctx.b.length",
    ),
    (
        (
            "interface Own<T extends string = string> { v: T; f: { [K in T]?: K } } type K = 1; "
            "interface Ctx { o: Own<'x'>; k: K }"
        ),
        "Ctx",
        "ctx.o.f.x?.length ?? ctx.k",
    ),
    (
        'import type { Base } from "./other"; interface Ctx extends Base { a: string }',
        "Ctx",
        "ctx.b + ctx.a.length",
    ),
    (
        (
            'import type { EventObject } from "xstate"; interface Ctx extends EventObject { a: '
            "string }"
        ),
        "Ctx",
        "ctx.a.length",
    ),
    ('import type * as T from "./other";', "T.Base", "ctx.b.toFixed()"),
    (
        'import type { Renamed, Deep } from "./other";',
        "{ r: Renamed; d: Deep }",
        "ctx.r.d.length + ctx.d.d.length",
    ),
    ('import type Main from "./other";', "Main", "ctx.m.toFixed()"),
    (
        "type J = string | number | boolean | null | J[] | { [k: string]: J };",
        "{ j: J; s: string }",
        "[ctx.j, ctx.s.length]",
    ),
    (
        "enum Level { Low = 'low', High = 'high' } const enum N { A, B = 5 }",
        "{ l: Level; n: N; h: Level.High }",
        "`${ctx.l} ${ctx.h}`",
    ),
    ("const BASE = 1; enum K { A = BASE }", "{ k: K; s: string }", "ctx.s.length"),
    (
        "class User { name = '' } class Node<T> { v!: T }",
        "{ u: User; n: Node<1>; s: string }",
        "ctx.s.length",
    ),
    (
        "const schema = {}; type Infer<T> = T;",
        "{ i: Infer<typeof schema>; r: ReturnType<typeof String>; s: string }",
        "ctx.s.length",
    ),
    (
        "const L = ['a', 'b'] as const;",
        "{ l: (typeof L)[number]; k: keyof typeof L; s: string }",
        "ctx.s.length",
    ),
    (
        "const KEY = 'k'; declare const sym: unique symbol;",
        "{ [KEY]: number; [sym]?: true; s: string }",
        "ctx.s.length",
    ),
    (
        "interface Outer { type: 'x'; in: { deep: 1 } }",
        "{ i: Outer['in']; p: Pick<Outer, 'type'>; u: Buffer; s: string }",
        "ctx.i.deep + ctx.s.length",
    ),
    (
        (
            "type Cond<T> = T extends (infer U)[] ? U : never; type M = { readonly [P in 'a' | "
            "'b']-?: P };"
        ),
        "{ c: Cond<string[]>; m: M }",
        "ctx.c.length + ctx.m.a.length",
    ),
    (
        "type Fn = <T>(a: T) => T; interface I { f<T>(a: T): void; s: string }",
        "{ i: I; g: Fn; s: string }",
        "ctx.s.length",
    ),
    ("type T1 = { a: 1 } /* } comment */ & { b: 2 } // more", "T1", "ctx.a + ctx.b"),
    ("namespace NS { export interface X { a: 1 } }", "{ x: NS.X; s: string }", "ctx.s.length"),
    ("", 'import("./other").Base & { s: string }', "1"),
    (
        "",
        (
            "{ d: Date; t: [a: string, b?: number]; s: Set<string>; u: string | undefined; tpl: "
            "`a-${number}` }"
        ),
        "ctx.d.length + ctx.t[0].length + ctx.tpl.length",
    ),
    ("interface Tree { kids: Tree[]; up?: Tree }", "Tree", "ctx.kids[0]?.up?.kids.length"),
    (
        (
            "type Types = 1; type Said = 2; type Or = 3; type Machine = 4; type Json = 5; type "
            "url = 6;"
        ),
        "{ a: Types; b: Said; c: Or; d: Machine; e: Json; f: url }",
        "ctx.a + ctx.b + ctx.f",
    ),
    (
        "type Big = " + " | ".join(f"'v{n}'" for n in range(3000)) + ";",
        "{ b: Big }",
        "ctx.b.length",
    ),
    (
        " ".join(f"interface I{n} {{ next?: I{n + 1} }}" for n in range(600))
        + " interface I600 { end: 1 }",
        "I0",
        "ctx.next?.next",
    ),
]


async def test_what_people_write_compiles(tmp_path: Path) -> None:
    """Whatever the source says, the file compiles, and what it could say is there."""
    for number, (before, context, use) in enumerate(STYLES):
        source = (
            f"{before}\nimport {{ setup }} from 'xstate'; import type {{ Ev }} from './other'; "
            f"import type {{ AnyEventObject }} from 'xstate';\nexport const machine = setup({{ "
            f"types: {{ context: {{}} as {context}, events: {{}} as Ev | AnyEventObject }} "
            f"}}).createMachine({{}});"
        )
        said = types_said({"m.ts": source, **OTHER}, "m.ts")
        assert said is not None, before
        (tmp_path / f"m{number}.hub.ts").write_text(
            typescript({"name": "m", "url": "http://h/m"}, 1, DEFINITION, said, list)
        )
        (tmp_path / f"app{number}.ts").write_text(
            f'import {{ connect }} from "@machinehub/client";\nimport hub from '
            f'"./m{number}.hub";\nconst store = connect({{ ...hub, sessionId: "s" }});\nconst ctx '
            f"= store.getSnapshot().context;\nexport const used = {use};\nvoid store.send({{ "
            f'type: "GO" }});\n// @ts-expect-error\nvoid store.send({{ type: "NO" }});\n'
        )
    assert await tsc(tmp_path) == ""


@pytest.mark.core
@pytest.mark.parametrize(
    "machine",
    [
        "createMachine({ types: T as any, invoke: { src: other } })",
        "createMachine({ entry: () => { const x = other; return [1].map((other) => other); } })",
        "createMachine({ invoke: { src: other.createMachine({}) } })",
    ],
)
def test_another_machines_types_are_not_taken(machine: str) -> None:
    said = types_said(
        {
            "m.ts": (
                f"const T = 1; const other = setup({{ types: {{ context: {{}} as {{ wrong: 1 }} "
                f"}} }}).createMachine({{}}); export default {machine};"
            )
        },
        "m.ts",
    )
    assert said is None or "wrong" not in said.type


@pytest.mark.core
@pytest.mark.parametrize(
    "source",
    [
        (
            "import { setup as mk } from 'xstate'; export default mk({ types: {} as { context: { "
            "right: 1 } } }).createMachine({})"
        ),
        (
            "const types = { context: {} as { right: 1 } }; export default setup({ types "
            "}).createMachine({})"
        ),
        (
            "const impl = { types: { context: {} as { right: 1 } } } satisfies object; const s = "
            "setup(impl); const m = s.createMachine({}); export { m as default }"
        ),
        (
            "export var machine = createMachine({ types: ({} as { context: { right: 1 } }) "
            "}).provide({})"
        ),
        (
            "const m = (createMachine({ types: <{ context: { right: 1 } }>{} }) as any)!; export "
            "default m;"
        ),
        "export { door as default } from './door'",
        "export * from './door'",
        "import * as d from './door'; import { door } from './door'; export default door",
    ],
)
def test_the_machines_own_types_are_found(source: str) -> None:
    said = types_said(
        {
            "m.ts": source,
            "door.ts": "export const door = createMachine({ types: {} as { context: { right: 1 } } })",
        },
        "m.ts",
    )
    assert said is not None
    assert "right: 1" in said.type


@pytest.mark.core
def test_constants_that_name_each_other_are_no_maze() -> None:
    names = [f"v{n}" for n in range(60)]
    source = (
        "".join(f"const {name} = () => [{', '.join(names)}];" for name in names)
        + "export default createMachine({ entry: v0 });"
    )
    assert types_said({"m.ts": source}, "m.ts") is None

// What is drawn, where, and which transition it was: for the examples, and for charts that nobody would write.

import ELK from "elkjs";
import type { Definition, StateNode, Transition } from "@machinehub/client";
import { describe, expect, test } from "vitest";
import { compare } from "../src/chart/compare.ts";
import { eventText, folded, graphOf, partsOf, transitionId } from "../src/chart/graph.ts";
import { arrange, rounded, treeOf } from "../src/chart/layout.ts";
import { taken } from "../src/chart/taken.ts";
import { fitting, isInSight, READABLE, resting, zoomed } from "../src/chart/view.ts";

type Config = { readonly [key: string]: Partial<StateNode> & { readonly children?: Config } };

/** A node with its children's ids filled in. */
function node(
  id: string,
  key: string,
  { children, ...rest }: Partial<StateNode> & { readonly children?: Config },
): StateNode {
  const states = Object.fromEntries(
    Object.entries(children ?? {}).map(([name, child]) => [
      name,
      node(`${id}.${name}`, name, child),
    ]),
  );
  const first = Object.values(states)[0];
  const type = rest.type ?? (first ? "compound" : "atomic");
  return {
    id,
    key,
    type,
    ...(type === "compound" && first ? { initial: first.id } : {}),
    ...(first ? { states } : {}),
    ...rest,
  };
}

const on = (event: string, ...targets: string[]): Transition => ({
  event,
  kind: "event",
  ...(targets.length ? { targets } : {}),
});
const machine = (root: Partial<StateNode> & { readonly children?: Config }): Definition => ({
  id: "m",
  events: [],
  root: node("m", "m", root),
});

const LIGHTS = machine({
  children: {
    green: {
      transitions: [
        { event: "xstate.after.500.m.green", kind: "after", delay: 500, targets: ["m.yellow"] },
        on("PUSH", "m.yellow"),
        on("count"),
        on("other"),
      ],
    },
    yellow: { transitions: [on("NEXT", "m.red.a"), { ...on("NEXT", "m.green"), guard: "g" }] },
    red: {
      transitions: [on("OUT", "m.green")],
      children: {
        a: { transitions: [on("NEXT", "m.red.b")] },
        b: { transitions: [on("OUT", "m.red.a")] },
      },
    },
  },
});

test("an arrow for each pair of states, a line for each transition, none for those that stay", () => {
  const { root, edges } = graphOf(LIGHTS);
  const green = root.children.find((box) => box.id === "m.green");
  expect(green?.inner.map((line) => line.event)).toEqual(["count", "other"]);
  const arrow = edges.find((edge) => edge.source === "s:m.green" && edge.target === "s:m.yellow");
  expect(arrow?.lines.map((line) => line.event)).toEqual(["after 500 ms", "PUSH"]);
  expect(root.children[0]?.kind).toBe("initial");
});

test("what XState adds for delays is not drawn", () => {
  const { root } = graphOf(
    machine({
      children: {
        a: {
          entry: ["xstate.raise", "mine", "xstate.raise"],
          exit: ["xstate.cancel"],
          transitions: [{ event: "xstate.after.5.m.a", kind: "after", delay: 5, targets: ["m.b"] }],
        },
        b: { exit: ["xstate.cancel"] },
      },
    }),
  );
  expect(root.children.map((box) => box.rows.map(({ kind, text }) => `${kind} ${text}`))).toEqual([
    [],
    ["entry raise", "entry mine"],
    ["exit cancel"],
  ]);
});

test.each([
  [{ event: "", kind: "always" }, "always"],
  [{ event: "xstate.after.x.m.a", kind: "after", delay: 2000 }, "after 2 s"],
  [{ event: "xstate.after.x.m.a", kind: "after", delay: "patience" }, "after patience"],
  [{ event: "xstate.done.state.m.a", kind: "done.state.m" }, "done"],
  [{ event: "xstate.done.actor.0.m.a", kind: "done.actor.0.m" }, "done(pay)"],
  [{ event: "xstate.error.actor.mine", kind: "error.actor" }, "error(mine)"],
  [{ event: "*", kind: "event" }, "*"],
])("%j is called %s", (transition, text) => {
  expect(
    eventText(transition as Transition, { invoke: [{ id: "0.m.a", src: "pay" }] } as never),
  ).toBe(text);
});

describe("which transition it was", () => {
  test.each([
    ["green", "yellow", {}, []], // two explain it
    ["green", "yellow", { event: "PUSH", kind: "event" }, [["m.green", 1]]],
    ["green", "green", { event: "count", changed: false }, []], // a guard may have refused it
    ["green", "yellow", { kind: "timer" }, [["m.green", 0]]],
    ["green", "green", { event: "count" }, [["m.green", 2]]],
    ["green", "green", {}, []],
    ["yellow", { red: "a" }, {}, [["m.yellow", 0]]],
    [{ red: "a" }, { red: "b" }, {}, [["m.red.a", 0]]],
    [{ red: "b" }, { red: "a" }, { event: "OUT" }, [["m.red.b", 0]]],
    [{ red: "b" }, "green", { event: "OUT" }, [["m.red", 0]]],
    ["green", "green", { event: "no such" }, []],
  ] as const)("from %j to %j by %j", (before, after, cause, wanted) => {
    expect(taken(LIGHTS, before, after, cause)).toEqual({
      ids: wanted.map(([id, index]) => transitionId(id, index)),
      sure: true,
    });
  });
  test("branches that only guards tell apart are not told apart", () => {
    const branches = machine({
      children: {
        a: {
          transitions: [
            { ...on("G", "m.b"), guard: "no" },
            { ...on("G", "m.b"), guard: "yes" },
          ],
        },
        b: {},
      },
    });
    expect(taken(branches, "a", "b", { event: "G" })).toEqual({
      ids: [transitionId("m.a", 0), transitionId("m.a", 1)],
      sure: false,
    });
  });
  test("what happened on the way is not guessed", () => {
    const transient = machine({
      children: {
        a: { transitions: [on("E", "m.b"), on("F", "m.c")] },
        b: { transitions: [{ event: "", kind: "always", targets: ["m.c"] }] },
        c: {},
      },
    });
    expect(taken(transient, "a", "c", { event: "E" }).ids).toEqual([]);
  });
});

test("what changed between two versions", () => {
  const newer = machine({
    children: {
      green: {
        tags: ["go"],
        transitions: [
          { event: "xstate.after.500.m.green", kind: "after", delay: 500, targets: ["m.blue"] },
          on("PUSH", "m.yellow"),
          on("count"),
          on("other"),
        ],
      },
      yellow: { transitions: [on("NEXT", "m.red.a"), { ...on("NEXT", "m.green"), guard: "g" }] },
      red: {
        transitions: [on("OUT", "m.green")],
        children: { a: { transitions: [on("NEXT", "m.red.b")] }, b: {} },
      },
      blue: {},
    },
  });
  const { list, marks } = compare(LIGHTS, newer);
  expect(list.map(({ change, what }) => `${change} ${what}`)).toEqual([
    "changed green",
    "changed green: after 500 ms",
    "added blue",
    "removed red.b: OUT",
  ]);
  expect(marks.get("m.blue")).toBe("added");
  expect(marks.get(transitionId("m.green", 0))).toBe("changed");
  expect(compare(LIGHTS, LIGHTS).list).toEqual([]);
});

test("edges belong to the innermost state around both ends; borders that they cross are open", () => {
  const tree = treeOf(graphOf(LIGHTS));
  expect(tree.crossed.has("s:m.red")).toBe(true);
  expect(tree.edges.get("s:m.red")?.length).toBe(3);
  expect([...tree.crossed].includes("s:m")).toBe(false);
});

/** Numbers that are the same in every run. */
function random(seed: number): () => number {
  let state = seed;
  return () => (state = (state * 1_103_515_245 + 12_345) % 2_147_483_648) / 2_147_483_648;
}

function anyChart(seed: number): Definition {
  const next = random(seed);
  const pick = (count: number): number => Math.floor(next() * count);
  const ids: string[] = [];
  const build = (
    id: string,
    depth: number,
  ): Partial<StateNode> & { readonly children?: Config } => {
    ids.push(id);
    const count = depth === 0 ? 1 + pick(5) : next() < 0.45 && depth < 4 ? 1 + pick(4) : 0;
    const children = Object.fromEntries(
      Array.from({ length: count }, (_, at) => [`s${at}`, build(`${id}.s${at}`, depth + 1)]),
    );
    return {
      ...(count && next() < 0.25
        ? { type: "parallel" as const }
        : !count && next() < 0.1
          ? { type: next() < 0.5 ? ("final" as const) : ("history" as const) }
          : {}),
      children,
    };
  };
  const root = build("m", 0);
  const arrows = new Map<string, Transition[]>();
  for (let n = pick(ids.length * 3); n > 0; n--) {
    const source = ids[pick(ids.length)] as string;
    arrows.set(source, [
      ...(arrows.get(source) ?? []),
      on(`E${pick(5)}`, ...(next() < 0.85 ? [ids[pick(ids.length)] as string] : [])),
    ]);
  }
  const dress = (
    one: Partial<StateNode> & { readonly children?: Config },
    id: string,
  ): Partial<StateNode> & { readonly children?: Config } => ({
    ...one,
    transitions: arrows.get(id) ?? [],
    children: Object.fromEntries(
      Object.entries(one.children ?? {}).map(([key, child]) => [key, dress(child, `${id}.${key}`)]),
    ),
  });
  return machine(dress(root, "m"));
}

test("every chart can be laid out, every arrow and state has its place", async () => {
  const elk = new ELK();
  for (let seed = 1; seed <= 20; seed++) {
    const graph = graphOf(anyChart(seed));
    const layout = await arrange(graph, 1.4, elk).catch((error: unknown) => {
      throw new Error(`seed ${seed}: ${String(error)}`);
    });
    for (const { edge, path } of layout.edges)
      expect(path, `seed ${seed}: ${edge.source} to ${edge.target}`).toMatch(/^M/);
    for (const [id, place] of layout.places)
      for (const side of [
        place.x,
        place.y,
        place.x + place.width - layout.width,
        place.y + place.height - layout.height,
      ])
        expect(Number.isFinite(side), `seed ${seed}: ${id}`).toBe(true);
  }
}, 60_000);

test("without arrows everything is a row, and can be laid out however much it is", async () => {
  const many = machine({
    children: Object.fromEntries(
      Array.from({ length: 100 }, (_, at) => [
        `s${at}`,
        { transitions: [on("A", `m.s${(at + 1) % 100}`), on("B", `m.s${(at * 37) % 100}`)] },
      ]),
    ),
  });
  const graph = graphOf(many, undefined, false);
  expect([
    graph.edges.length,
    graph.root.children[0]?.inner.map((line) => `${line.event} ${line.actions}`),
  ]).toEqual([0, ["A → s1", "B → s0"]]);
  expect((await arrange(graph, 1.4, new ELK())).places.size).toBe(101);
}, 30_000);

test("a crowd of transitions between two states is cut, a long name too", () => {
  const { edges } = graphOf(
    machine({
      children: {
        a: { transitions: Array.from({ length: 300 }, (_, at) => on(`E${at}`, "m.b")) },
        b: { transitions: [on("x".repeat(5000), "m.a")] },
      },
    }),
  );
  expect(edges.find((edge) => edge.lines.length === 300)?.height).toBeLessThan(200);
  expect(edges.find((edge) => edge.source === "s:m.b")?.width).toBeLessThan(500);
});

test("ids of an author's cannot be taken for our own", () => {
  const { root, edges } = graphOf(
    machine({
      children: {
        a: { id: "i:m" },
        b: { id: "e0", transitions: [on("X", "0:e0")] },
        c: { id: "0:e0" },
      },
    }),
  );
  expect(
    new Set([root.key, ...root.children.map((box) => box.key), ...edges.map((edge) => edge.id)])
      .size,
  ).toBe(1 + 4 + 2);
});

test("corners are rounded, within what the line allows", () => {
  expect(rounded([])).toBe("");
  expect(
    rounded([
      { x: 0, y: 0 },
      { x: 0, y: 9 },
    ]),
  ).toBe("M0 0L0 9");
  expect(
    rounded([
      { x: 0, y: 0 },
      { x: 0, y: 20 },
      { x: 4, y: 20 },
    ]),
  ).toBe("M0 0L0 14Q0 20 2 20L4 20");
});

test("a chart that cannot be read as a whole is seen around what is active", () => {
  const screen = { width: 800, height: 600 };
  expect(
    resting({ width: 500, height: 400 }, screen, { x: 0, y: 0, width: 10, height: 10 }),
  ).toEqual(fitting(500, 400, 800, 600));
  const place = { x: 2000, y: 900, width: 100, height: 50 };
  const view = resting({ width: 4000, height: 1000 }, screen, place);
  expect(view.scale).toBe(READABLE);
  expect(isInSight(view, place, screen)).toBe(true);
  expect(resting({ width: 4000, height: 1000 }, screen, { ...place, x: 0 }).x).toBe(14);
  expect(isInSight({ x: 0, y: 0, scale: 1 }, place, screen)).toBe(false);
});

test("a label that is cut keeps its parts apart", () => {
  const line = {
    id: "0:a",
    sends: "GO",
    event: "GO",
    guard: "isThisGuardNameVeryVeryLongIndeed",
    actions: "one, two, three, four",
    title: "",
  };
  const [event, guard, actions] = partsOf(line);
  expect([event, guard, actions]).toEqual(["GO", " [isThisGuardNameVeryVeryLongIndeed]", " / on…"]);
  expect(partsOf({ ...line, guard: "", actions: "" })).toEqual(["GO", "", ""]);
  expect(partsOf({ ...line, event: "x".repeat(60) })[0]).toHaveLength(44);
});

test("descriptions are folded", () => {
  expect(folded("")).toEqual([]);
  expect(
    folded("A machine whose description is rather long, so that it takes two lines\nand more"),
  ).toEqual(["A machine whose description is rather", "long, so that it takes two lines"]);
  expect(folded("word ".repeat(60))).toHaveLength(3);
  expect(folded("word ".repeat(60)).at(-1)).toMatch(/…$/);
});

test("views fit, and zoom about a point", () => {
  expect(fitting(100, 100, 78, 258)).toEqual({ scale: 0.5, x: 14, y: 83 });
  const view = zoomed({ x: 10, y: 10, scale: 1 }, 2, 50, 50);
  expect(view).toEqual({ scale: 2, x: -30, y: -30 });
  expect(zoomed(view, 1e9, 0, 0).scale).toBe(3);
});

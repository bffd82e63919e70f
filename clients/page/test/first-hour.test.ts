// Times as people say them, payloads of forms, timers by name, and charts that are packed.

import ELK from "elkjs";
import type { Definition, StateNode } from "@machinehub/client";
import { describe, expect, test } from "vitest";
import type { Entry } from "../src/api.ts";
import { countdown, duration, eventText, graphOf } from "../src/chart/graph.ts";
import { pack, type Place, straight } from "../src/chart/layout.ts";
import { payloadOf } from "../src/payload.tsx";
import { visibleLines } from "../src/text.ts";
import { named } from "../src/timers.tsx";

test.each([
  [0, "0 ms"],
  [150, "150 ms"],
  [1000, "1 s"],
  [2500, "2.5 s"],
  [1234, "1234 ms"],
  [60_000, "1 min"],
  [90_000, "1 min 30 s"],
  [300_000, "5 min"],
  [3_600_000, "1 h"],
  [5_400_000, "1 h 30 min"],
  [86_400_000, "1 d"],
  [129_600_000, "1 d 12 h"],
  [90_061_000, "90061000 ms"],
])("%i ms are %s", (ms, text) => expect(duration(ms)).toBe(text));

test.each([
  [-5, "0:00"],
  [900, "0:01"],
  [59_000, "0:59"],
  [61_000, "1:01"],
  [3_661_000, "1:01:01"],
  [90_000_000, "1 d 1 h"],
])("%i ms are left as %s", (ms, text) => expect(countdown(ms)).toBe(text));

test("a delay with a name says how long it is, where that is known", () => {
  const after = { event: "xstate.after.soon.m.a", kind: "after", delay: "soon" };
  expect(eventText({ ...after, delayMs: 300_000 })).toBe("after soon (5 min)");
  expect(eventText(after)).toBe("after soon");
});

test("newlines stay, other controls are written out", () =>
  expect(visibleLines("a\nb\u0007")).toBe("a\nb⟨0007⟩"));

test("a form's values are what the event carries", () => {
  const given: { [name: string]: string | null } = {
    text: "5",
    number: "5",
    choice: '"a"',
    json: '{"x":[1]}',
    yes: "on",
    no: null,
    empty: "",
  };
  const payload = payloadOf(
    [
      { name: "text", kind: "text" },
      { name: "number", kind: "number" },
      { name: "choice", kind: "choice", values: ["a", 1] },
      { name: "json", kind: "json" },
      { name: "yes", kind: "boolean" },
      { name: "no", kind: "boolean" },
      { name: "empty", kind: "number", optional: true },
    ],
    (name) => given[name],
  );
  expect(payload).toEqual({
    text: "5",
    number: 5,
    choice: "a",
    json: { x: [1] },
    yes: true,
    no: false,
  });
  expect(() => payloadOf([{ name: "j", kind: "json" }], () => "{")).toThrow();
});

test("timers are named by the delays that set them", () => {
  const at = (ms: number): string => new Date(ms).toISOString();
  const node: StateNode = {
    id: "m.a",
    key: "a",
    type: "atomic",
    transitions: [
      { event: "xstate.after.5000.m.a", kind: "after", delay: 5000, targets: ["m.b"] },
      { event: "xstate.after.soon.m.a", kind: "after", delay: "soon", delayMs: 60_000 },
    ],
  };
  const entry = { at: at(1_000_000) } as Entry;
  const timers = [
    { id: 1, due_at: at(1_060_000) },
    { id: 2, due_at: at(1_005_000) },
    { id: 3, due_at: at(1_007_777) },
  ];
  expect(named(timers, [node], [entry]).map(({ text, state }) => [text, state])).toEqual([
    ["after 5 s", "m.a"],
    ["timer", undefined],
    ["after soon (1 min)", "m.a"],
  ]);
});

const elk = new ELK();
const inside = (outer: Place, inner: Place): boolean =>
  inner.x >= outer.x - 1 &&
  inner.y >= outer.y - 1 &&
  inner.x + inner.width <= outer.x + outer.width + 1 &&
  inner.y + inner.height <= outer.y + outer.height + 1;
const apart = (one: Place, other: Place): boolean =>
  one.x + one.width <= other.x + 1 ||
  other.x + other.width <= one.x + 1 ||
  one.y + one.height <= other.y + 1 ||
  other.y + other.height <= one.y + 1;

/** Forty states in eight groups, with guards, actions and delays. */
function forty(): Definition {
  const states: { [key: string]: StateNode } = {};
  const stages = [
    "intake",
    "payment",
    "fraud",
    "packing",
    "shipping",
    "delivery",
    "returns",
    "end",
  ];
  stages.forEach((stage, index) => {
    const id = `order.${stage}`;
    const next = `order.${stages[(index + 1) % stages.length] as string}`;
    const event = (name: string, target: string, more = {}) => ({
      event: name,
      kind: "event",
      targets: [target],
      ...more,
    });
    const inner: { [key: string]: StateNode } = {
      waiting: {
        id: `${id}.waiting`,
        key: "waiting",
        type: "atomic",
        transitions: [event(`START_${stage.toUpperCase()}`, `${id}.working`)],
      },
      working: {
        id: `${id}.working`,
        key: "working",
        type: "atomic",
        transitions: [
          event("DONE", `${id}.checking`, { actions: ["note"] }),
          event("FAIL", `${id}.failed`, { guard: "isFatal" }),
        ],
      },
      checking: {
        id: `${id}.checking`,
        key: "checking",
        type: "atomic",
        transitions: [event("APPROVE", next), event("REJECT", `${id}.working`)],
      },
      failed: {
        id: `${id}.failed`,
        key: "failed",
        type: "atomic",
        transitions: [event("RETRY", `${id}.waiting`, { guard: "hasTries" })],
      },
    };
    states[stage] = { id, key: stage, type: "compound", initial: `${id}.waiting`, states: inner };
  });
  return {
    id: "order",
    events: [],
    root: { id: "order", key: "order", type: "compound", initial: "order.intake", states },
  };
}

describe("a chart of forty states", async () => {
  const screen = { width: 896, height: 750 };
  const shape = screen.width / screen.height;
  const definition = forty();
  const full = graphOf(definition);
  const packed = await pack(full, graphOf(definition, undefined, false), shape, elk);

  test("fits in text of at least eight pixels", () => {
    const scale = Math.min(screen.width / packed.width, screen.height / packed.height);
    expect(scale * 12).toBeGreaterThanOrEqual(8);
  });

  test("has states in their parents, and beside each other", () => {
    const walk = (boxes: typeof packed.graph.root.children, outer: Place): void => {
      const places = boxes.map((box) => packed.places.get(box.key) as Place);
      for (const place of places) expect(inside(outer, place)).toBe(true);
      places.forEach((one, index) =>
        places.slice(index + 1).forEach((other) => expect(apart(one, other)).toBe(true)),
      );
      boxes.forEach((box, index) => walk(box.children, places[index] as Place));
    };
    const root = packed.graph.root;
    walk(root.children, packed.places.get(root.key) as Place);
  });

  test("begins where the machine does", () => {
    const [first] = packed.graph.root.children;
    expect([first?.name, first?.first]).toEqual(["intake", true]);
    const places = packed.graph.root.children.map((box) => packed.places.get(box.key) as Place);
    const at = places[0] as Place;
    expect(places.every(({ x, y }) => y > at.y || x >= at.x)).toBe(true);
  });

  test("keeps its arrows, for active states", () => {
    expect(packed.edges.length).toBe(full.edges.filter(({ lines }) => lines.length).length);
    expect(
      packed.edges.every(({ far, label, path }) => far && !label && path.startsWith("M")),
    ).toBe(true);
  });
});

test("an arrow leaves and enters at the borders", () => {
  const path = straight(
    { x: 0, y: 0, width: 10, height: 10 },
    { x: 100, y: 0, width: 10, height: 10 },
  );
  const [, x = "", , , endX = ""] = /^M(\S+) (\S+)Q(\S+) \S+ (\S+) \S+$/.exec(path) ?? [];
  expect(Number(x)).toBeCloseTo(10, 0);
  expect(Number(endX)).toBeCloseTo(100, 0);
});

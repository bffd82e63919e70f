// From a definition to what is drawn: boxes with rows of text, and edges between them. Decides what is an edge and what is a row, and
// how large everything is; where it lies is decided by elk (layout.ts).

import { type Definition, namesEvent, type StateNode, type Transition } from "@machinehub/client";
import { clip } from "../text.ts";

/** One transition, as a line of text. */
export interface Line {
  /** Of the transition: its source's id and its place there. */
  readonly id: string;
  /** The type that a client can send to have it taken; undefined for what is no event of clients, and for wildcards. */
  readonly sends: string | undefined;
  readonly event: string;
  readonly guard: string;
  readonly actions: string;
  readonly title: string;
}

export interface Row {
  readonly kind: "entry" | "exit" | "invoke" | "description";
  readonly text: string;
}

export interface Box {
  /** Names the box in the layout. An author chooses ids: they never stand alone. */
  readonly key: string;
  /** Of the state. */
  readonly id: string;
  readonly kind: StateNode["type"] | "initial";
  readonly name: string;
  readonly description: string;
  readonly tags: readonly string[];
  readonly rows: readonly Row[];
  /** Transitions that stay: they need no arrow. */
  readonly inner: readonly Line[];
  readonly deep: boolean;
  readonly children: readonly Box[];
  /** Whether this is a region of a parallel state. */
  readonly region: boolean;
  /** Whether its parent begins here, and no arrow says so. */
  readonly first: boolean;
  /** In pixels: of the box when it has no children, else what its header needs. */
  readonly width: number;
  readonly height: number;
}

export interface Edge {
  readonly id: string;
  /** Keys of boxes. */
  readonly source: string;
  readonly target: string;
  readonly lines: readonly Line[];
  readonly width: number;
  readonly height: number;
}

export interface Graph {
  readonly root: Box;
  readonly edges: readonly Edge[];
}

export const LINE = 16;
const HEADER = 26;
const PADDING = 10;
const MARK = 14;

export type Font = "name" | "tag" | "strong" | "plain";
export type Measure = (text: string, font: Font) => number;

/** How wide text is, roughly, where nobody can measure it. */
export const roughly: Measure = (text, font) =>
  Array.from(text).reduce((sum, char) => sum + (char > "\u2e7f" ? 2 : 1), 0) *
  { name: 8, tag: 6.3, strong: 7.4, plain: 6.8 }[font];

interface Drawing {
  readonly measure: Measure;
  readonly arrows: boolean;
  readonly edges: Map<string, { source: string; target: string; lines: Line[] }>;
}

/** So many lines of an arrow are written. */
export const LINES_MAX = 8;

/** Without `arrows` every transition is a row of its source, for charts that nobody can lay out. */
export function graphOf(definition: Definition, measure: Measure = roughly, arrows = true): Graph {
  const drawing: Drawing = { measure, arrows, edges: new Map() };
  const root = boxOf(definition.root, undefined, drawing, definition.id);
  return {
    root,
    edges: [...drawing.edges.values()].map(({ source, target, lines }, index) => ({
      id: `e${index}`,
      source,
      target,
      lines,
      ...sizeOfLines(lines, measure),
    })),
  };
}

function boxOf(
  node: StateNode,
  parent: StateNode | undefined,
  drawing: Drawing,
  name = node.key,
): Box {
  const { edges, measure, arrows } = drawing;
  const own = `s:${node.id}`;
  const inner: Line[] = [];
  (node.transitions ?? []).forEach((transition, index) => {
    const line = lineOf(node, transition, index);
    const targets = transition.targets ?? [];
    if (!arrows && targets.length > 0)
      return void inner.push({
        ...line,
        actions: `→ ${targets.map((target) => target.split(".").at(-1)).join(", ")}${line.actions && ` / ${line.actions}`}`,
      });
    if (targets.length === 0 || (targets.length === 1 && targets[0] === node.id)) inner.push(line);
    for (const target of targets) {
      if (target === node.id) continue;
      const key = JSON.stringify([node.id, target]);
      const edge = edges.get(key) ?? { source: own, target: `s:${target}`, lines: [] };
      edge.lines.push(line);
      edges.set(key, edge);
    }
  });
  // Where it begins stands first: what is read first is what happens first.
  const children = Object.values(node.states ?? {})
    .sort((one, other) => Number(other.id === node.initial) - Number(one.id === node.initial))
    .map((child) => boxOf(child, node, drawing));
  if (arrows && node.type === "compound" && node.initial !== undefined && children.length > 0) {
    const mark = `i:${node.id}`;
    children.unshift({
      key: mark,
      id: node.id,
      kind: "initial",
      name: "",
      description: "",
      tags: [],
      rows: [],
      inner: [],
      deep: false,
      children: [],
      region: false,
      first: false,
      width: MARK,
      height: MARK,
    });
    edges.set(mark, { source: mark, target: `s:${node.initial}`, lines: [] });
  }
  const rows: Row[] = [
    ...folded(node.description ?? "").map((text) => ({ kind: "description" as const, text })),
    ...written(node, node.entry, "xstate.raise").map((text) => ({
      kind: "entry" as const,
      text: short(text),
    })),
    ...written(node, node.exit, "xstate.cancel").map((text) => ({
      kind: "exit" as const,
      text: short(text),
    })),
    ...(node.invoke ?? []).map(({ src, id }) => ({
      kind: "invoke" as const,
      text: src && src !== "inline" ? src : (id ?? "inline"),
    })),
  ];
  const box = {
    key: own,
    id: node.id,
    kind: node.type,
    name,
    description: node.description ?? "",
    tags: node.tags ?? [],
    rows,
    inner,
    deep: node.history === "deep",
    children,
    region: parent?.type === "parallel",
    first: !arrows && parent?.type === "compound" && parent.initial === node.id,
  };
  return { ...box, ...sizeOf(box, measure) };
}

const DESCRIPTION_LINES = 3;
const DESCRIPTION_CHARS = 42;

/** A description's first paragraph in lines that fit into a box; what is over is in the box's title. */
export function folded(description: string): string[] {
  const lines: string[] = [];
  for (const word of (description.split("\n")[0] as string).split(" ").filter(Boolean)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + word.length < DESCRIPTION_CHARS)
      lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  const shown = lines.slice(0, DESCRIPTION_LINES);
  if (lines.length > shown.length) shown[shown.length - 1] += "…";
  return shown;
}

/** Actions without those that XState adds at the end for each delay of the state: the delays are drawn themselves. */
function written(
  node: StateNode,
  actions: readonly string[] = [],
  added: string,
): readonly string[] {
  let delays = new Set(
    (node.transitions ?? []).filter(({ kind }) => kind === "after").map(({ event }) => event),
  ).size;
  return actions
    .toReversed()
    .filter((action) => action !== added || delays-- <= 0)
    .toReversed();
}

/** XState's own actions and guards without their family name. */
const short = (name: string): string => name.replace(/^xstate\./, "");

function sizeOf(
  box: Omit<Box, "width" | "height">,
  measure: Measure,
): { width: number; height: number } {
  if (box.kind === "history") return { width: 24, height: 24 };
  const head =
    (box.first ? MARK : 0) +
    measure(clip(box.name), "name") +
    box.tags.reduce((sum, tag) => sum + measure(clip(tag, 16), "tag") + 14, 8);
  const widths = [
    head,
    ...box.rows.map(
      (row) =>
        measure(clip(row.text), "plain") +
        (row.kind === "description" ? 0 : measure(`${row.kind} `, "strong")),
    ),
    ...box.inner.map((line) => widthOf(line, measure)),
  ];
  const lines = box.rows.length + box.inner.length;
  return {
    width: Math.max(72, Math.ceil(Math.max(...widths) + 2 * PADDING)),
    height: HEADER + 6 + (lines ? lines * LINE + 6 : 6),
  };
}

/** The event is set in bold, the rest is not. */
function widthOf(line: Line, measure: Measure): number {
  const [event, guard, actions] = partsOf(line);
  return measure(event, "strong") + measure(guard + actions, "plain") + 2;
}

/** What is written of a line, cut to size, as event, guard and actions. */
export function partsOf(line: Line): readonly [event: string, guard: string, actions: string] {
  const text = textOf(line);
  const event = Math.min(clip(line.event).length, text.length);
  const guard = line.guard
    ? Math.min(clip(`${line.event} [${line.guard}]`).length, text.length)
    : event;
  return [text.slice(0, event), text.slice(event, guard), text.slice(guard)];
}

export function sizeOfLines(
  lines: readonly Line[],
  measure: Measure,
): { width: number; height: number } {
  const shown = lines.slice(0, LINES_MAX);
  const more = lines.length > shown.length ? 1 : 0;
  return {
    width: lines.length
      ? Math.ceil(Math.max(...shown.map((line) => widthOf(line, measure))) + 14)
      : 0,
    height: (shown.length + more) * LINE + (lines.length ? 4 : 0),
  };
}

/** What an edge says, as long as there is room: event, guard, actions. */
export function textOf(line: Line): string {
  return clip(
    [
      line.event,
      line.guard && `[${line.guard}]`,
      line.actions.startsWith("→") ? line.actions : line.actions && `/ ${line.actions}`,
    ]
      .filter(Boolean)
      .join(" "),
  );
}

export const transitionId = (source: string, index: number): string => `${index}:${source}`;

function lineOf(node: StateNode, transition: Transition, index: number): Line {
  const event = eventText(transition, node);
  const guard = short(transition.guard ?? "");
  const actions = [
    ...(transition.actions ?? []).map(short),
    ...(transition.reenter ? ["reenter"] : []),
  ].join(", ");
  const full = [event, guard && `[${guard}]`, actions && `/ ${actions}`].filter(Boolean).join(" ");
  return {
    id: transitionId(node.id, index),
    sends:
      transition.kind === "event" && namesEvent(transition.event) ? transition.event : undefined,
    event,
    guard,
    actions,
    title: transition.description ? `${full}\n${transition.description}` : full,
  };
}

/** How a transition's cause is called in a statechart. */
export function eventText({ event, kind, delay, delayMs }: Transition, node?: StateNode): string {
  if (kind === "after")
    return `after ${typeof delay === "number" ? duration(delay) : delay}${delayMs === undefined ? "" : ` (${duration(delayMs)})`}`;
  if (kind === "always") return "always";
  if (kind === "event") return event;
  const [, what = "", how = "", actor = ""] = /^xstate\.(\w+)\.(\w+)\.?(.*)$/s.exec(event) ?? [];
  if (how === "state") return what;
  const invoke = node?.invoke?.find(({ id }) => id === actor);
  const name =
    invoke?.src && invoke.src !== "inline" ? invoke.src : /^\d+\./.test(actor) ? "" : actor;
  return name ? `${what || kind}(${name})` : what || kind;
}

const UNITS = [
  ["d", 86_400_000],
  ["h", 3_600_000],
  ["min", 60_000],
  ["s", 1_000],
] as const;

/** As people say it, exactly: in at most two units, tenths of a second allowed, else in milliseconds. */
export function duration(ms: number): string {
  const said: string[] = [];
  let rest = ms;
  for (const [unit, size] of UNITS) {
    const whole = unit === "s" && ms < 60_000 ? rest / size : Math.floor(rest / size);
    if (whole < 1) continue;
    said.push(`${whole} ${unit}`);
    rest = unit === "s" && ms < 60_000 ? rest % 100 : rest % size;
  }
  return said.length > 0 && rest === 0 && said.length <= 2 ? said.join(" ") : `${ms} ms`;
}

/** What is left of a time: "0:09", "12:03", "1 d 3 h". */
export function countdown(ms: number): string {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  if (seconds >= 86_400)
    return `${Math.floor(seconds / 86_400)} d ${Math.floor((seconds % 86_400) / 3600)} h`;
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60)];
  const two = (value: number): string => String(value).padStart(2, "0");
  return hours > 0
    ? `${hours}:${two(minutes)}:${two(seconds % 60)}`
    : `${minutes}:${two(seconds % 60)}`;
}

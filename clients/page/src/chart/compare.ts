// What changed in the chart between two versions: states and transitions that came, went, or say something else now.

import type { Definition, StateNode } from "@machinehub/client";
import { eventText, transitionId } from "./graph.ts";
import { jsonText } from "../text.ts";

export type Change = "added" | "removed" | "changed";
export interface Difference {
  readonly change: Change;
  readonly what: string;
  readonly before?: string;
  readonly after?: string;
}

export interface Comparison {
  readonly list: readonly Difference[];
  /** Of states and transitions of the newer version, by id. */
  readonly marks: ReadonlyMap<string, Change>;
}

interface Part {
  readonly id: string;
  readonly what: string;
  readonly says: string;
}

export function compare(older: Definition, newer: Definition): Comparison {
  const [before, after] = [partsOf(older), partsOf(newer)];
  const list: Difference[] = [];
  const marks = new Map<string, Change>();
  for (const [key, part] of after) {
    const known = before.get(key);
    const change = known === undefined ? "added" : known.says !== part.says ? "changed" : undefined;
    if (change === undefined) continue;
    marks.set(part.id, change);
    list.push({
      change,
      what: part.what,
      after: part.says,
      ...(known === undefined ? {} : { before: known.says }),
    });
  }
  for (const [key, part] of before)
    if (!after.has(key)) list.push({ change: "removed", what: part.what, before: part.says });
  if (JSON.stringify(older.context) !== JSON.stringify(newer.context))
    list.push({
      change: "changed",
      what: "initial context",
      before: jsonText(older.context) ?? "computed",
      after: jsonText(newer.context) ?? "computed",
    });
  return { list, marks };
}

/** States by their path, transitions by source, cause and how many of the same cause came before. */
function partsOf(definition: Definition): Map<string, Part> {
  const parts = new Map<string, Part>();
  const visit = (node: StateNode, path: readonly string[]): void => {
    const where = path.length ? path.join(".") : "the machine";
    const { transitions = [], states = {}, id: _, key: __, initial, ...says } = node;
    const start =
      initial === undefined
        ? undefined
        : Object.values(states).find((child) => child.id === initial)?.key;
    parts.set(JSON.stringify(["state", ...path]), {
      id: node.id,
      what: where,
      says: describeState({ ...says, ...(start === undefined ? {} : { initial: start }) }),
    });
    const seen = new Map<string, number>();
    transitions.forEach((transition, index) => {
      const event = eventText(transition);
      const number = seen.get(event) ?? 0;
      seen.set(event, number + 1);
      const targets = (transition.targets ?? []).map((target) =>
        target.startsWith(`${definition.root.id}.`)
          ? target.slice(definition.root.id.length + 1)
          : target,
      );
      const text = [
        event,
        transition.guard && `[${transition.guard}]`,
        targets.length && `→ ${targets.join(", ")}`,
        transition.actions?.length && `/ ${transition.actions.join(", ")}`,
        transition.reenter && "(reenter)",
      ]
        .filter(Boolean)
        .join(" ");
      parts.set(JSON.stringify(["transition", ...path, "", event, number]), {
        id: transitionId(node.id, index),
        what: `${where}: ${event}`,
        says: text,
      });
    });
    for (const child of Object.values(states)) visit(child, [...path, child.key]);
  };
  visit(definition.root, []);
  return parts;
}

function describeState(says: { readonly [part: string]: unknown }): string {
  return Object.entries(says)
    .filter(([, value]) => value !== undefined && !(Array.isArray(value) && value.length === 0))
    .map(([part, value]) =>
      part === "type"
        ? String(value)
        : `${part} ${typeof value === "string" ? value : JSON.stringify(value)}`,
    )
    .join(", ");
}

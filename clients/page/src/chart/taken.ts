// Which transition was it? The hub says where a session stands, not how it came there. An event's type narrows it down; without one, a
// transition is shown only if no other explains what is seen.

import {
  activeNodes,
  type Definition,
  describes,
  type StateNode,
  type Transition,
} from "@machinehub/client";
import { transitionId } from "./graph.ts";

export interface Cause {
  /** An event's type; undefined where it is not known. */
  readonly event?: string | undefined;
  readonly kind?: string | undefined;
  /** Whether anything changed; undefined where it is not known. */
  readonly changed?: boolean | undefined;
}

export interface Found {
  readonly ids: readonly string[];
  /** Whether it was all of them. Guards run on the hub: of several branches of one event it cannot be told which it was, only which way it went. */
  readonly sure: boolean;
}

const NONE: Found = { ids: [], sure: true };

/** The transitions that were taken between two state values, as far as that can be told. */
export function taken(
  definition: Definition,
  before: unknown,
  after: unknown,
  cause: Cause,
): Found {
  if (cause.changed === false) return NONE; // it may have been taken and done nothing, or a guard may have refused: nobody knows
  const was = activeNodes(definition.root, before);
  const is = new Set(activeNodes(definition.root, after).map((node) => node.id));
  const entered = new Set([...is].filter((id) => !was.some((node) => node.id === id)));
  const candidates = was.flatMap((node) =>
    (node.transitions ?? []).map((transition, index) => ({
      node,
      transition,
      id: transitionId(node.id, index),
    })),
  );
  const fitting = candidates.filter(
    ({ node, transition }) => fits(node, transition, is, entered) && causedBy(transition, cause),
  );
  const found =
    entered.size > 0
      ? fitting.filter(({ transition }) => leads(transition, entered))
      : fitting.filter(
          ({ transition }) =>
            !transition.targets?.length || transition.targets.every((target) => is.has(target)),
        );
  const known = cause.event !== undefined || cause.kind === "timer";
  return known || found.length === 1 ? innermost(found) : NONE;
}

interface Candidate {
  readonly node: StateNode;
  readonly transition: Transition;
  readonly id: string;
}

const leads = (transition: Transition, entered: Set<string>): boolean =>
  (transition.targets ?? []).some((target) => entered.has(target));

function fits(
  node: StateNode,
  transition: Transition,
  is: Set<string>,
  entered: Set<string>,
): boolean {
  const targets = transition.targets ?? [];
  return targets.length === 0
    ? is.has(node.id) && entered.size === 0
    : targets.every((target) => is.has(target)) || targets.some((target) => entered.has(target));
}

function causedBy(transition: Transition, { event, kind }: Cause): boolean {
  if (kind === "timer") return transition.kind !== "event";
  if (event === undefined) return true;
  return transition.kind === "event" && describes(transition.event, event);
}

/** Of the deepest sources that have any. */
function innermost(found: readonly Candidate[]): Found {
  const deepest = found.filter(
    (one) => !found.some((other) => other.node !== one.node && contains(one.node, other.node.id)),
  );
  return {
    ids: deepest.map(({ id }) => id),
    sure: new Set(deepest.map(({ node }) => node.id)).size === deepest.length,
  };
}

function contains(node: StateNode, id: string): boolean {
  return Object.values(node.states ?? {}).some((child) => child.id === id || contains(child, id));
}

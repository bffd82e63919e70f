// Which transition was it? The hub says where a session stands, not how it came there. An event's type narrows it down; without one, a
// transition is shown only if no other explains what is seen.

import { activeNodes, type Definition, describes, type StateNode, type Transition } from "@machinehub/client";
import { transitionId } from "./graph.ts";

export interface Cause {
  /** An event's type; undefined where it is not known. */
  readonly event?: string | undefined;
  readonly kind?: string | undefined;
}

/** The ids of the transitions that were taken between two state values, as far as that can be told. */
export function taken(definition: Definition, before: unknown, after: unknown, cause: Cause): string[] {
  const was = activeNodes(definition.root, before);
  const is = new Set(activeNodes(definition.root, after).map((node) => node.id));
  const entered = new Set([...is].filter((id) => !was.some((node) => node.id === id)));
  const candidates = was.flatMap((node) => (node.transitions ?? []).map((transition, index) => ({ node, transition, id: transitionId(node.id, index) })));
  const moving = candidates.filter(({ node, transition }) => fits(node, transition, is, entered) && causedBy(transition, cause));
  if (entered.size > 0) {
    const found = moving.filter(({ transition }) => leads(transition, entered));
    return cause.event !== undefined || distinctSources(found) ? innermost(found) : found.length === 1 ? [found[0]?.id as string] : [];
  }
  const staying = moving.filter(({ transition }) => !transition.targets?.length || transition.targets.every((target) => is.has(target)));
  return cause.event !== undefined ? innermost(staying) : staying.length === 1 && cause.kind === undefined ? [staying[0]?.id as string] : [];
}

interface Candidate { readonly node: StateNode; readonly transition: Transition; readonly id: string }

const leads = (transition: Transition, entered: Set<string>): boolean => (transition.targets ?? []).some((target) => entered.has(target));

function fits(node: StateNode, transition: Transition, is: Set<string>, entered: Set<string>): boolean {
  const targets = transition.targets ?? [];
  return targets.length === 0 ? is.has(node.id) && entered.size === 0 : targets.every((target) => is.has(target)) || targets.some((target) => entered.has(target));
}

function causedBy(transition: Transition, { event, kind }: Cause): boolean {
  if (kind === "timer") return transition.kind !== "event";
  if (event === undefined) return true;
  return transition.kind === "event" && describes(transition.event, event);
}

/** One for each source: the first that fits, of the deepest that has any. */
function innermost(found: readonly Candidate[]): string[] {
  const first = found.filter((one, index) => found.findIndex((other) => other.node.id === one.node.id) === index);
  return first.filter((one) => !first.some((other) => other !== one && contains(one.node, other.node.id))).map(({ id }) => id);
}

function contains(node: StateNode, id: string): boolean {
  return Object.values(node.states ?? {}).some((child) => child.id === id || contains(child, id));
}

const distinctSources = (found: readonly Candidate[]): boolean => found.length > 0 && new Set(found.map(({ node }) => node.id)).size === found.length && found.length === 1;

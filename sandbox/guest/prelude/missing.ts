// Names that a machine uses and nothing implements: of actions, guards, actors and delays; and keys that mean nothing. XState finds out when it comes to
// them, or never; a typo should be seen when the machine is deployed.

import { StateMachine, type AnyStateMachine, type AnyStateNode } from "xstate";

export interface Missing {
  readonly kind: "action" | "guard" | "actor" | "delay" | "key";
  readonly name: string;
  /** The id of the state that names it first. */
  readonly state: string;
}

interface Implementations {
  readonly actions: object;
  readonly guards: object;
  readonly actors: object;
  readonly delays: object;
}

/** An action or guard as a machine may hold it: a name, an object with a name, or a function; XState's own functions have parts. */
interface Parts {
  readonly type?: unknown;
  readonly delay?: unknown;
  readonly src?: unknown;
  readonly guards?: readonly Part[];
}
type Part = string | Parts | (Parts & ((...parameters: never[]) => unknown)) | undefined;

/** What XState 5 reads of a state, of a whole machine and of a transition. */
const STATE_KEYS = new Set(
  "id key type initial states on always after entry exit invoke onDone output tags meta description history target route parent order context version schemas types".split(
    " ",
  ),
);
const TRANSITION_KEYS = new Set(
  "target actions guard reenter meta description context input params".split(" "),
);

type Config = { readonly [key: string]: unknown };
const isConfig = (value: unknown): value is Config =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** Keys of a state's config, and of its transitions', that XState passes over. */
function strangeKeys(config: Config): string[] {
  const strange = Object.keys(config).filter((key) => !STATE_KEYS.has(key));
  const lists = [...valuesOf(config["on"]), ...valuesOf(config["after"]), config["always"]];
  for (const transition of lists.flat())
    if (isConfig(transition))
      strange.push(...Object.keys(transition).filter((key) => !TRANSITION_KEYS.has(key)));
  return strange;
}

const valuesOf = (value: unknown): unknown[] => (isConfig(value) ? Object.values(value) : []);

const MOST = 50;
const MACHINES = 100;

/** At most 50 of them, those of machines that are invoked or spawned by name included. */
export function missingOf(machine: AnyStateMachine): Missing[] {
  const found = new Map<string, Missing>();
  const machines = new Set<AnyStateMachine>([machine]);
  for (const each of machines) {
    if (machines.size > MACHINES) break;
    lookAt(each, (missing) => {
      const key = `${missing.kind} ${missing.name}`;
      if (found.size < MOST && !found.has(key)) found.set(key, missing);
    });
    for (const logic of Object.values(each.implementations.actors))
      if (logic instanceof StateMachine) machines.add(logic as AnyStateMachine);
  }
  return [...found.values()];
}

function lookAt(machine: AnyStateMachine, report: (missing: Missing) => void): void {
  const known = machine.implementations as Implementations;
  const lookAtNode = (node: AnyStateNode): void => {
    const name = (kind: Missing["kind"], among: object, value: unknown): void => {
      if (typeof value === "string" && !value.startsWith("xstate.") && !(value in among))
        report({ kind, name: value, state: node.id });
    };
    const delay = (value: unknown): void => name("delay", known.delays, value);
    const action = (part: Part): void => {
      if (typeof part === "string") return name("action", known.actions, part);
      if (typeof part === "function") {
        // One of XState's own, which says what it is of: raise and sendTo have a delay, spawnChild has a source.
        if (part.type === "xstate.raise" || part.type === "xstate.sendTo") delay(part.delay);
        if (part.type === "xstate.spawnChild") name("actor", known.actors, part.src);
      } else if (part !== undefined) name("action", known.actions, part.type);
    };
    const guard = (part: Part): void => {
      if (typeof part === "string") return name("guard", known.guards, part);
      if (typeof part === "function") part.guards?.forEach(guard);
      else if (part !== undefined) name("guard", known.guards, part.type);
    };
    for (const key of strangeKeys(node.config as Config))
      report({ kind: "key", name: key, state: node.id });
    for (const part of [...node.entry, ...node.exit]) action(part);
    for (const { src } of node.invoke) name("actor", known.actors, src);
    const transitions = [...node.transitions.values()].flat();
    for (const transition of [...transitions, ...(node.always ?? [])]) {
      guard(transition.guard);
      for (const part of transition.actions) action(part);
    }
    for (const child of Object.values(node.states)) lookAtNode(child as AnyStateNode);
  };
  lookAtNode(machine.root);
}

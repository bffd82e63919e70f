// A machine's definition, as GET /{machine} has it, and what it says of a state value: which states are active, what they take.

export interface StateNode {
  readonly id: string;
  readonly key: string;
  readonly type: "atomic" | "compound" | "parallel" | "final" | "history";
  readonly description?: string;
  readonly initial?: string;
  readonly history?: string;
  readonly tags?: readonly string[];
  readonly entry?: readonly string[];
  readonly exit?: readonly string[];
  readonly invoke?: readonly { readonly id?: string; readonly src?: string }[];
  readonly transitions?: readonly Transition[];
  readonly states?: { readonly [key: string]: StateNode };
}

export interface Transition {
  readonly event: string;
  readonly kind: string;
  readonly delay?: number | string;
  /** How long a delay with a name is, where it is not computed. */
  readonly delayMs?: number;
  readonly targets?: readonly string[];
  readonly guard?: string;
  readonly actions?: readonly string[];
  readonly reenter?: boolean;
  readonly description?: string;
}

export interface Definition {
  readonly id: string;
  readonly description?: string;
  readonly events: readonly string[];
  /** What every session begins with, where that depends on nothing. */
  readonly context?: unknown;
  readonly root: StateNode;
  /** What events carry besides their type, as far as the machine's own types say. */
  readonly payloads?: { readonly [type: string]: readonly PayloadField[] };
}

/** A member of an event's payload. */
export interface PayloadField {
  readonly name: string;
  /** "json" is anything that is none of the others. */
  readonly kind: "text" | "number" | "boolean" | "choice" | "json";
  readonly optional?: boolean;
  /** Of a choice: its values. */
  readonly values?: readonly (string | number | boolean | null)[];
}

/** The nodes that are active in a state value, outermost first. */
export function activeNodes(root: StateNode, value: unknown): StateNode[] {
  const active = [root];
  const enter = (node: StateNode, inner: unknown): void => {
    const children: [string, unknown][] =
      typeof inner === "string"
        ? [[inner, undefined]]
        : typeof inner === "object" && inner !== null
          ? Object.entries(inner)
          : [];
    for (const [key, rest] of children) {
      const child =
        node.states !== undefined && Object.hasOwn(node.states, key) ? node.states[key] : undefined;
      if (child === undefined) continue;
      active.push(child);
      enter(child, rest);
    }
  };
  enter(root, value);
  return active;
}

/** Whether a transition's event descriptor means this type: itself, `*`, or `prefix.*`. */
export function describes(descriptor: string, type: string): boolean {
  if (descriptor === "*" || descriptor === type) return true;
  return descriptor.endsWith(".*") && `${type}.`.startsWith(descriptor.slice(0, -1));
}

const isClients = (type: string): boolean => !/^(xstate|presence)\./.test(type);
/** Whether it is the type of an event that clients may send, and no pattern. */
export const namesEvent = (type: string): boolean => isClients(type) && !type.endsWith("*");

/** The types of the events that a machine names and a client may send, in whatever state. */
export const namedEvents = (definition: Definition): string[] =>
  definition.events.filter(namesEvent);

export function takes(definition: Definition, value: unknown, type: string): boolean {
  return activeNodes(definition.root, value).some(
    (node) =>
      node.transitions?.some(
        ({ kind, event }) => kind === "event" && isClients(event) && describes(event, type),
      ) ?? false,
  );
}

export function eventsOf(definition: Definition, value: unknown): string[] {
  const types = new Set<string>();
  for (const node of activeNodes(definition.root, value)) {
    for (const { kind, event } of node.transitions ?? [])
      if (kind === "event" && namesEvent(event)) types.add(event);
  }
  return [...types].sort();
}

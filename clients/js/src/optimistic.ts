// Running a machine ahead of the hub: what the session will probably be, once the hub has applied the events that are on their way.
//
// The app's own copy of the machine computes it, from the last state that the hub told: pure transitions, in which no action runs but
// those that compute the context, and no actor starts. What cannot be computed so (an actor that has to be spoken to, a guard that
// throws) is not guessed: the hub's answer is waited for.

import type { PublicSnapshot } from "./state.ts";

/** As much of an XState machine as is needed. */
export interface Predictable {
  resolveState(config: never): unknown;
  transition(snapshot: never, event: never, scope: never): unknown;
}

interface Machine {
  resolveState(config: {
    value: unknown;
    context: unknown;
    status: string;
    output?: unknown;
  }): Snapshot;
  transition(snapshot: Snapshot, event: object, scope: object): Snapshot;
}

interface Snapshot {
  readonly value: unknown;
  readonly context: unknown;
  readonly status: string;
  readonly tags?: Iterable<string>;
  readonly output?: unknown;
}

const nothing = (): void => undefined;

/** The surroundings of a transition that has no effect on anything. */
function nowhere(): object {
  const scheduler = { schedule: nothing, cancel: nothing, cancelAll: nothing };
  const system = {
    _bookId: () => "x:0",
    _register: nothing,
    _unregister: nothing,
    _set: nothing,
    _relay: nothing,
    _sendInspectionEvent: nothing,
    _logger: nothing,
    get: nothing,
    scheduler,
  };
  const self = { id: "ahead", sessionId: "x:0", system, send: nothing, _parent: undefined };
  return {
    self,
    system,
    id: "ahead",
    sessionId: "x:0",
    logger: nothing,
    defer: nothing,
    emit: nothing,
    stopChild: nothing,
    actionExecutor: nothing,
  };
}

/** `truth` after `events`, which are JSON texts; `truth` itself where nothing can be told. */
export function ahead(
  machine: Predictable,
  truth: PublicSnapshot,
  events: readonly string[],
  sender: object | undefined,
): PublicSnapshot {
  if (events.length === 0 || truth.status !== "active") return truth;
  const own = machine as unknown as Machine;
  let snapshot: Snapshot | undefined;
  try {
    const { value, context, status } = truth;
    let next = own.resolveState({ value, context, status });
    for (const text of events) {
      if (next.status !== "active") break;
      const event = JSON.parse(text) as object;
      next = own.transition(next, sender === undefined ? event : { ...event, sender }, nowhere());
      if (next.status === "error") break;
      snapshot = next;
    }
  } catch {
    // what was computed so far is shown
  }
  return snapshot === undefined ? truth : { ...truth, ...publicOf(snapshot) };
}

/** What goes over the wire of it: JSON. */
function publicOf(snapshot: Snapshot): PublicSnapshot {
  const { value, context, status, output, tags } = snapshot;
  return JSON.parse(
    JSON.stringify({ value, context, status, output, tags: [...(tags ?? [])] }),
  ) as PublicSnapshot;
}

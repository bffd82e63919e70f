// A snapshot in the making, and the snapshots that come of it.

import { createMachineSnapshot } from "xstate/internals";
import type {
  Children,
  Configuration,
  Event,
  History,
  Machine,
  Nodes,
  Scope,
  Snapshot,
  Value,
} from "./types.ts";

/** A snapshot in the making. XState's guards and actions are given it where they expect a snapshot. */
export class Work {
  declare configuration: Configuration;
  declare machine: Machine;
  declare scope: Scope;
  declare event: Event;
  declare context: unknown;
  declare children: Children;
  declare historyValue: History;
  declare status: string;
  declare output: unknown;
  declare error: unknown;
  declare queue: Event[];
  /** Whether XState would have made a new snapshot: in this microstep. */
  declare dirty: boolean;
  get _nodes(): Nodes {
    return this.configuration.nodes;
  }
  get value(): Value {
    return this.configuration.value;
  }
  get tags(): Set<string> {
    return new Set(this.configuration.tags);
  }
}
let idle: Work | null = null;

/** The methods of XState's snapshots. */
let matches: unknown, hasTag: unknown, can: unknown, getMeta: unknown, toJSON: unknown;

/** Learns them from a snapshot of XState's making. */
export function learnMethods(machine: Machine): void {
  if (matches !== undefined) return;
  ({ matches, hasTag, can, getMeta, toJSON } = createMachineSnapshot(
    { _nodes: [machine.root] },
    machine,
  ));
  Object.assign(Work.prototype, { matches, hasTag, can, getMeta, toJSON });
}

export function begin(
  machine: Machine,
  scope: Scope,
  configuration: Configuration,
  event: Event,
  context: unknown,
  children: Children,
  history: History,
  output: unknown,
  error: unknown,
): Work {
  let work = idle;
  if (work === null) {
    work = new Work();
    work.queue = [];
  } else idle = null;
  work.configuration = configuration;
  work.machine = machine;
  work.scope = scope;
  work.event = event;
  work.context = context;
  work.children = children;
  work.historyValue = history;
  work.status = "active";
  work.output = output;
  work.error = error;
  work.dirty = false;
  return work;
}

/** Gives the work back for the next time. Not after an error: it is left as it is, to be freed. */
export function finish(work: Work): void {
  if (work.queue.length) work.queue = []; // a machine that is done leaves what it raised
  work.event = work.context = work.output = work.error = undefined as never;
  idle = work;
}

/** As much of a snapshot as guards look at. */
export function viewOf({ machine, context, configuration, children }: Work): object {
  return {
    machine,
    context,
    children,
    _nodes: configuration.nodes,
    value: configuration.value,
    matches,
  };
}

export function snapshotOf(work: Work): Snapshot {
  const { configuration } = work;
  const { value, tags } = configuration;
  return {
    status: work.status,
    output: work.output,
    error: work.error,
    machine: work.machine,
    context: work.context,
    _nodes: configuration.nodes,
    value: typeof value === "string" ? value : copyOf(value),
    tags: tags.length ? new Set(tags) : new Set(),
    children: work.children,
    historyValue: work.historyValue,
    matches,
    hasTag,
    can,
    getMeta,
    toJSON,
  };
}

function copyOf(value: { [key: string]: Value }): Value {
  const copy: { [key: string]: Value } = {};
  const keys = Object.keys(value); // not what a machine may have put into Object.prototype
  for (let i = 0; i < keys.length; i++) {
    const key = keys[i] as string;
    const part = value[key] as Value;
    copy[key] = typeof part === "string" ? part : copyOf(part);
  }
  return copy;
}

/** A built-in that we do not know changed the snapshot: take over what it says. */
export function take(work: Work, next: Snapshot): void {
  work.context = next.context;
  work.children = next.children;
  work.status = next.status;
  work.output = next.output;
  work.error = next.error;
  work.dirty = true;
}

// One transition of a machine, from tables: XState's `macrostep`.
//
// What depends on context and event is done each time, as XState does it: guards, actions, outputs, in the same order, with
// the same arguments.

import { stopChild } from "xstate";
import {
  createDoneStateEvent,
  createMachineSnapshot,
  evaluateGuard,
  resolveOutput,
} from "xstate/internals";
import { assignTo, run, spawnerOf, type Nest, type Retry } from "./actions.ts";
import { noteCause, turn } from "../turn.ts";
import { quiet } from "./system.ts";
import { findMove, keyOf, NOTHING, rowOf } from "./tables.ts";
import type {
  Action,
  ActionFunction,
  Computed,
  Configuration,
  Entry,
  Event,
  Final,
  Guard,
  History,
  Move,
  Program,
  Row,
  Scope,
  Snapshot,
  Transition,
} from "./types.ts";
import { begin, finish, snapshotOf, type Work } from "./work.ts";

export function transition(
  configuration: Configuration,
  snapshot: Snapshot,
  event: Event,
  scope: Scope,
): Snapshot {
  const work = begin(
    snapshot.machine,
    scope,
    configuration,
    event,
    snapshot.context,
    snapshot.children,
    snapshot.historyValue,
    snapshot.output,
    snapshot.error,
  );
  if (turn.event === null) noteCause(event.type);
  if (event.type === "xstate.stop") return ended(work, "stopped", undefined);
  const move = choose(work);
  let changed = false;
  if (move !== null) {
    if (event === turn.event) turn.taken = true;
    step(work, move);
    changed = work.dirty;
    if (quiet === null) tell(work, move);
  } else if (event.type.startsWith("xstate.error.actor")) return ended(work, "error", event.error);
  const next = settle(work) || changed ? snapshotOf(work) : snapshot;
  finish(work);
  return next;
}

/** The machine stops, or a child failed whose error nobody handles. */
function ended(work: Work, status: string, error: unknown): Snapshot {
  stopChildren(work);
  work.status = status;
  if (status === "error") work.error = error;
  const snapshot = snapshotOf(work);
  finish(work);
  return snapshot;
}

/** XState's macrostep behind the first microstep; whether a new snapshot came of it. */
function settle(work: Work): boolean {
  const most = work.machine.options?.maxIterations ?? Infinity;
  let changed = false;
  let eventless = true;
  let count = 0;
  const { queue } = work;
  while (work.status === "active") {
    if (++count > most) {
      throw new Error(
        `Infinite loop detected: the machine has processed more than ${most} microsteps without reaching a stable state. This usually happens when there's a cycle of transitions (e.g., eventless transitions or raised events causing state A -> B -> C -> A).`,
      );
    }
    let move: Move | null =
      eventless && work.configuration.always !== null ? chooseAlways(work) : null;
    const wasEventless: boolean = move !== null;
    if (move === null) {
      if (!queue.length) break;
      work.event = queue.shift() as Event;
      move = choose(work);
    }
    beginStep(work);
    if (move !== null) step(work, move);
    if (quiet === null) tell(work, move);
    eventless = !wasEventless || work.dirty;
    if (work.dirty) changed = true;
  }
  if (work.status !== "active") {
    const { children } = work;
    stopChildren(work);
    work.children = children; // they stand in the last snapshot
  }
  return changed;
}

function beginStep(work: Work): void {
  work.dirty = false;
}

/** Somebody began to inspect the system while the transition ran. */
function tell(work: Work, move: Move | null): void {
  const { scope, event } = work;
  scope.system._sendInspectionEvent({
    type: "@xstate.microstep",
    actorRef: scope.self,
    event,
    snapshot: snapshotOf(work),
    _transitions: move?.transitions ?? [],
  });
}

/** The move that the event makes; null when no transition is taken. */
function choose(work: Work): Move | null {
  const { configuration } = work;
  // What was raised may be undefined: read like this, the error is the one that XState throws.
  const type = work.event.type;
  if (typeof type !== "string") return chooseUntyped(work);
  const row = configuration.rows.get(type) ?? rowOf(configuration, type);
  if (row === NOTHING) return null;
  const { list } = row;
  if (row.regions !== null) {
    const taken: Transition[] = [];
    chooseIn(work, row.regions, taken);
    if (taken.length) return findMove(configuration, taken, work.historyValue);
  }
  for (let i = 0; i < list.length; i++) {
    const transition = list[i] as Transition;
    if (!passes(work, transition)) continue;
    const move = row.moves[i];
    if (move !== undefined) return move;
    const key = keyOf(configuration.program, [transition]);
    const found = findMove(configuration, [transition], work.historyValue, key);
    // Not what depends on history, of which there is only a mark under this key, nor what is not to be kept.
    if (configuration.moves.get(key) === found) row.moves[i] = found;
    return found;
  }
  return null;
}

/** Machines can raise what has no type. XState lets a wildcard take it, or fails over it. */
function chooseUntyped(work: Work): Move | null {
  const taken = work.machine.getTransitionData(snapshotOf(work), work.event);
  return taken.length ? findMove(work.configuration, taken, work.historyValue) : null;
}

function chooseIn(work: Work, regions: Row[], taken: Transition[]): void {
  for (let at = 0; at < regions.length; at++) {
    const { regions: inner, list } = regions[at] as Row;
    const before = taken.length;
    if (inner !== null) chooseIn(work, inner, taken);
    if (taken.length > before) continue;
    for (let i = 0; i < list.length; i++) {
      const transition = list[i] as Transition;
      if (passes(work, transition)) {
        taken.push(transition);
        break;
      }
    }
  }
}

function chooseAlways(work: Work): Move | null {
  const { configuration } = work;
  const taken: Transition[] = [];
  const always = configuration.always as Transition[][];
  for (let at = 0; at < always.length; at++) {
    const list = always[at] as Transition[];
    for (let i = 0; i < list.length; i++) {
      const transition = list[i] as Transition;
      if (transition.guard === undefined || holds(work, transition.guard)) {
        if (!taken.includes(transition)) taken.push(transition);
        break;
      }
    }
  }
  return taken.length ? findMove(configuration, taken, work.historyValue) : null;
}

function passes(work: Work, transition: Transition): boolean {
  const { guard } = transition;
  if (!guard) return true;
  try {
    return holds(work, guard);
  } catch (err) {
    const guardType =
      typeof guard === "string" ? guard : typeof guard === "object" ? guard.type : undefined;
    // eslint-disable-next-line preserve-caught-error -- XState's has none either
    throw new Error(
      `Unable to evaluate guard ${guardType ? `'${guardType}' ` : ""}in transition for event '${work.event.type}' in state node '${transition.source.id}':\n${(err as Error).message}`,
    );
  }
}

function holds(work: Work, guard: Guard): boolean {
  const { context, event } = work;
  if (typeof guard === "function")
    return "check" in guard
      ? evaluateGuard(guard, context, event, work)
      : guard({ context, event }, undefined);
  const { guards } = work.machine.implementations;
  const named = typeof guard === "string" ? guards[guard] : guards[guard.type];
  if (typeof named !== "function" || "check" in named)
    return evaluateGuard(guard, context, event, work);
  return named(
    { context, event },
    typeof guard === "string" || !("params" in guard)
      ? undefined
      : typeof guard.params === "function"
        ? (guard.params as Computed)({ context, event })
        : guard.params,
  );
}

export function step(work: Work, move: Move): void {
  const { before, entries, after } = move;
  if (before.length) run(work, before, undefined, null);
  for (let i = 0; i < entries.length; i++) {
    const entry = entries[i] as Entry;
    const { actions, final } = entry;
    if (actions.length) {
      const retries: Retry[] = [];
      run(work, actions, entry.actorIds, retries);
      for (let at = 0; at < retries.length; at++) {
        const [action, params] = retries[at] as Retry;
        (action.retryResolve as NonNullable<ActionFunction["retryResolve"]>)(
          work.scope,
          work,
          params,
        );
      }
    }
    if (final !== null) finalize(work, final);
  }
  if (move.fails !== null) throw move.fails.error;
  if (after.length) run(work, after, undefined, null);
  if (move.changes) {
    work.configuration = move.to;
    work.dirty = true;
    if (move.recorded !== null)
      work.historyValue = { ...work.historyValue, ...recordedIn(move.recorded) };
  }
}

/** Lists of their own: a machine may do with them what it likes. */
function recordedIn(recorded: NonNullable<Move["recorded"]>): History {
  const history: History = {};
  for (const [id, nodes] of recorded) history[id] = [...nodes];
  return history;
}

function finalize(work: Work, { node, parentId, parallels, completes }: Final): void {
  const { queue } = work;
  const { self } = work.scope;
  if (parentId !== null)
    queue.push(
      createDoneStateEvent(
        parentId,
        node.output !== undefined
          ? resolveOutput(node.output, work.context, work.event, self)
          : undefined,
      ),
    );
  for (let i = 0; i < parallels.length; i++)
    queue.push(createDoneStateEvent(parallels[i] as string));
  if (completes === null) return;
  const { root } = work.machine;
  let output: unknown;
  if (root.output !== undefined) {
    const event = createDoneStateEvent(
      completes.id,
      completes.output !== undefined && completes.parent
        ? resolveOutput(completes.output, work.context, work.event, self)
        : undefined,
    );
    output = resolveOutput(root.output, work.context, event, self);
  }
  work.status = "done";
  work.output = output;
  work.dirty = true;
}

function stopChildren(work: Work): void {
  const children = Object.values(work.children);
  if (!children.length) return;
  run(
    work,
    children.map((child) => stopChild(child as never) as unknown as Action),
    undefined,
    null,
  );
}

export function initialSnapshot(program: Program, scope: Scope, input: unknown): Snapshot {
  const { machine } = program;
  const { context } = machine.config;
  const event = { type: "xstate.init", input };
  const work = begin(
    machine,
    scope,
    program.first,
    event,
    typeof context !== "function" && context ? context : {},
    {},
    {},
    undefined,
    undefined,
  );
  let before = work.context;
  let { children } = work;
  try {
    if (typeof context === "function") {
      const nest: Nest = [scope, machine, before, event];
      work.context = before = assignTo(
        {},
        before,
        (context as Computed)({ spawn: spawnerOf(nest), input, self: scope.self }),
      );
      if (nest[4] !== undefined) work.children = children = nest[4];
    }
    step(work, program.start);
    settle(work);
    const snapshot = snapshotOf(work);
    finish(work);
    return snapshot;
  } catch (error) {
    return createMachineSnapshot(
      {
        status: "error",
        error,
        context: before,
        _nodes: program.first.nodes,
        children,
        historyValue: {},
      },
      machine,
    );
  }
}

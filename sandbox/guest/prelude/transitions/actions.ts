// Running actions: XState's `resolveAndExecuteActionsWithContext`, on a snapshot in the making.
//
// Built-in actions are resolved and executed by XState's own functions, but for two that are too frequent: `assign`, and
// `raise` without a delay.

import {
  assign,
  cancel,
  emit,
  enqueueActions,
  log,
  raise,
  sendTo,
  spawnChild,
  stopChild,
} from "xstate";
import { quiet } from "./system.ts";
import {
  RUNNING,
  type Action,
  type ActionFunction,
  type Children,
  type Computed,
  type Event,
  type Machine,
  type Node,
  type Scope,
} from "./types.ts";
import { snapshotOf, take, viewOf, type Work } from "./work.ts";

type Resolve = NonNullable<ActionFunction["resolve"]>;
export type Retry = [action: ActionFunction, params: unknown];
const resolverOf = (action: unknown): unknown => (action as ActionFunction).resolve;
export const [resolveAssign, resolveRaise, resolveSpawn, resolveStop, resolveEnqueue] = [
  assign({}),
  raise({ type: "" }),
  spawnChild(""),
  stopChild(""),
  enqueueActions(() => {}),
].map(resolverOf);
/** Those whose `resolve` leaves the snapshot alone, and looks at no more of it than `machine` and `children`. */
const LEAVE_ALONE: unknown[] = [
  resolveRaise,
  ...[cancel(""), emit({ type: "" }), sendTo("", { type: "" }), log()].map(resolverOf),
];
export const assignTo = Object.assign;
const NO_NODES: Node[] = [];

/** XState's `resolveAndExecuteActionsWithContext`. */
export function run(
  work: Work,
  actions: Action[],
  actorIds: string[] | undefined,
  retries: Retry[] | null,
): void {
  const { scope, event, machine } = work;
  const { self, system } = scope;
  for (let i = 0; i < actions.length; i++) {
    const action = actions[i] as Action;
    const isInline = typeof action === "function";
    const resolved = isInline
      ? action
      : machine.implementations.actions[typeof action === "string" ? action : action.type];
    const { context } = work;
    const params =
      isInline || typeof action === "string"
        ? undefined
        : "params" in action
          ? typeof action.params === "function"
            ? (action.params as Computed)({ context, event })
            : action.params
          : undefined;
    if (!resolved || !("resolve" in resolved)) {
      const type =
        typeof action === "string"
          ? action
          : typeof action === "object"
            ? action.type
            : action.name || "(anonymous)";
      const info = { context, event, self, system };
      perform(work, { type, info, params, exec: resolved });
      continue;
    }
    const { resolve } = resolved;
    if (resolve === resolveAssign) {
      assignIn(work, resolved.assignment, params);
      continue;
    }
    const args = { context, event, self, system };
    if (
      resolve === resolveRaise &&
      resolved.delay === undefined &&
      quiet !== null &&
      self._processingStatus === RUNNING
    ) {
      const raised =
        typeof resolved.event === "function"
          ? (resolved.event as Computed)(args, params)
          : resolved.event;
      if (typeof resolved.event !== "string") {
        work.queue.push(raised as Event);
        continue;
      }
    }
    const extra = { internalQueue: work.queue, deferredActorIds: actorIds };
    let seen: unknown = work;
    const isSpawn = resolve === resolveSpawn || resolve === resolveStop;
    const isKnown = isSpawn || resolve === resolveEnqueue || LEAVE_ALONE.includes(resolve);
    if (isSpawn) seen = { machine, context, children: work.children, _nodes: NO_NODES };
    else if (resolve === resolveEnqueue)
      seen = viewOf(work); // its `check` may be kept for later
    else if (!isKnown) seen = snapshotOf(work);
    const [next, found, more] = resolve(scope, seen, args, params, resolved, extra);
    if (isSpawn) {
      work.children = next.children;
      work.dirty = true;
    } else if (!isKnown && next !== seen) take(work, next);
    if (retries !== null && "retryResolve" in resolved) retries.push([resolved, found]);
    if ("execute" in resolved) {
      const { execute } = resolved as Required<ActionFunction>;
      if (isKnown && quiet !== null && self._processingStatus === RUNNING) execute(scope, found);
      else
        perform(work, {
          type: resolved.type,
          info: args,
          params: found,
          exec: execute.bind(null, scope, found),
        });
    }
    if (more) run(work, more, actorIds, retries);
  }
}

/** What the actor's `actionExecutor` does, for one that nobody inspects. */
function perform(
  work: Work,
  action: {
    type: string | undefined;
    info: object;
    params: unknown;
    exec: ActionFunction | ((...args: never[]) => void) | undefined;
  },
): void {
  const { scope } = work;
  if (quiet === null || scope.self._processingStatus !== RUNNING) scope.actionExecutor(action);
  else if (action.exec) action.exec(action.info as never, action.params as never);
}

/** What an `assign` may spawn from and into: a list, which QuickJS makes faster than an object. */
export type Nest = [
  scope: Scope,
  machine: Machine,
  context: unknown,
  event: Event,
  spawned?: Children,
  spawn?: Spawn,
];
type Spawn = (source: unknown, options: unknown) => { id: string };

export const spawnerOf =
  (nest: Nest): Spawn =>
  (source, options) => {
    const spawn = nest[5] ?? itsSpawner(nest);
    nest[4] ??= {};
    nest[5] = spawn;
    const actor = spawn(source, options);
    nest[4][actor.id] = actor;
    return actor;
  };

/** XState's own `spawn`, got by assigning nothing. */
function itsSpawner([scope, machine, context, event]: Nest): Spawn {
  let spawner: Spawn | null = null;
  const probe = assign(({ spawn }: { spawn: Spawn }) => {
    spawner = spawn;
    return {};
  }) as unknown as ActionFunction;
  (resolveAssign as Resolve)(
    scope,
    { machine, context, children: {}, _nodes: NO_NODES },
    { event },
    undefined,
    probe,
    {},
  );
  return spawner as unknown as Spawn;
}

function assignIn(work: Work, assignment: unknown, params: unknown): void {
  const { scope, context, event } = work;
  if (!context)
    throw new Error(
      "Cannot assign to undefined `context`. Ensure that `context` is defined in the machine config.",
    );
  const nest: Nest = [scope, work.machine, context, event];
  const args = { context, event, spawn: spawnerOf(nest), self: scope.self, system: scope.system };
  if (typeof assignment === "function")
    work.context = assignTo({}, context, (assignment as Computed)(args, params));
  else {
    const each = assignment as Record<string, unknown>;
    const keys = Object.keys(each);
    const part: Record<string, unknown> = {};
    for (let i = 0; i < keys.length; i++) {
      const key = keys[i] as string;
      const value = each[key];
      part[key] = typeof value === "function" ? (value as Computed)(args, params) : value;
    }
    work.context = assignTo({}, context, part);
  }
  if (nest[4] !== undefined) work.children = { ...work.children, ...nest[4] };
  work.dirty = true;
}

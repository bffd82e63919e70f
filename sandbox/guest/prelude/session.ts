// One live session: inputs in, outbox out.
//
// An input is the JSON text [shape, seed, ...] of sandbox/protocol/inputs.py: [0, seed, input] starts the actor,
// [1, seed, event, sender] sends an event, [2, seed, id] is a timer come due, [3, seed] asks for what XState would persist,
// which then stands in the place of the snapshot, [4, seed, id, answer] is what became of a request. Any other shape is refused: it
// was written for a later guest. The outbox is [format, flags, snapshot | null, emitted, timersSet, timersCancelled, logs, cause,
// requests, withdrawn] of sandbox/protocol/outbox.py, cut after the last entry that says something, or [0, fault] when the turn
// must be undone.
// `snapshot` is null when nothing public changed. `step` runs before the promise jobs of the turn, `collect` after them.

import { createActor, type AnyActorRef, type AnyStateMachine } from "xstate";
import * as safe from "./intrinsics.ts";
import { settle, type Answered } from "./effects.ts";
import { seedTurn } from "./random.ts";
import { logRejections } from "./rejections.ts";
import { fireTimer } from "./timers.ts";
import { expectRoot, forgetSystem } from "./transitions/system.ts";
import { clearTurn, faultText, limits, reject, rejectThrown, turn } from "./turn.ts";

/** Which version of the list `collect` answers. */
const OUTBOX_FORMAT = "3";
const FINISHED = 1;
const NOT_TAKEN = 2;

let machine: AnyStateMachine | null = null;
let actor: AnyActorRef | null = null;
let options: Options = { stopsOnError: false, compiled: true };
let published = "";
let persisted: string | null = null; // the answer of a turn that asked for it
let actors = 0; // of the snapshot that is spelled

export interface Options {
  /** An action that throws ends the session in an error, rather than undoing the turn. */
  stopsOnError: boolean;
  /** Transitions are run from tables. */
  compiled: boolean;
}

export function setMachine(loaded: AnyStateMachine, chosen: Options): void {
  machine = loaded;
  options = chosen;
}

/** As if there had been no session: for what ran while the image was built. */
export function forget(): void {
  machine = actor = null;
  published = "";
  actors = 0;
  clearTurn();
  seedTurn(0);
  forgetSystem();
}

export function step(text: string): void {
  clearTurn();
  persisted = null;
  let input: [kind: number, seed: number, subject: unknown, sender: unknown];
  try {
    input = safe.parse(text) as typeof input;
  } catch (error) {
    return rejectThrown("invalid_event", error);
  }
  seedTurn(input[1]);
  try {
    switch (input[0]) {
      case 0:
        return start(input[2]);
      case 1:
        return send(input[2] as Record<string, unknown>, input[3]);
      case 2:
        turn.awaited = true;
        return fireTimer(input[2] as number);
      case 3:
        return persist();
      case 4:
        turn.awaited = true;
        return settle(input[2] as number, input[3] as Answered);
      default:
        reject("unknown_input", "the input is of a kind that this version's guest does not know");
    }
  } catch (error) {
    rejectThrown("machine_error", error);
  }
}

function start(input: unknown): void {
  if (actor) return reject("unknown_input", "the session has started already");
  if (options.compiled) expectRoot();
  actor = createActor(machine as AnyStateMachine, { input });
  actor.subscribe({ error: failed });
  actor.on("*", emitted);
  actor.start();
}

function send(event: Record<string, unknown>, sender: unknown): void {
  if (
    typeof event.type !== "string" ||
    (safe.startsWith(event.type, "xstate.") && !isRoute(event.type))
  ) {
    return reject("invalid_event", "an event needs a type of its own");
  }
  if (sender !== null) event.sender = sender;
  turn.event = event;
  (actor as AnyActorRef).send(event);
}

/** What `createActor(machine, { snapshot })` restores. Asked of a copy of the session, which is thrown away. */
function persist(): void {
  try {
    const snapshot = (actor as AnyActorRef).getPersistedSnapshot();
    checkSources(snapshot as Persistedlike);
    persisted = safe.wellFormed(safe.stringify(snapshot) as string);
  } catch (error) {
    return rejectThrown("not_persistable", error);
  }
  if (persisted.length > limits.snapshotChars)
    reject("snapshot_too_large", `the snapshot has more than ${limits.snapshotChars} bytes`);
}

interface Persistedlike {
  children?: Record<string, { src: unknown; snapshot?: Persistedlike }>;
}

/** What a child runs is found again by its name. XState says so itself only in its development build. */
function checkSources({ children }: Persistedlike): void {
  for (const id in children) {
    if (!safe.hasOwn(children, id)) continue;
    const { src, snapshot } = children[id] as { src: unknown; snapshot?: Persistedlike };
    if (typeof src !== "string")
      throw new Error(`the child ${id} was spawned without a name for what it runs`);
    if (snapshot) checkSources(snapshot);
  }
}

/** XState's public way to go to a state that has a `route`: the only types of its own that clients may send. */
const isRoute = (type: string): boolean =>
  type === "xstate.route" || safe.startsWith(type, "xstate.route.");

/** The actor ended in an error: by a thrown action, or by a child's error that nobody handled. */
function failed(error: unknown): void {
  if (!options.stopsOnError) rejectThrown("machine_error", error);
}

function emitted(event: unknown): void {
  const text = safe.wellFormed(safe.stringify(event) ?? "null");
  turn.emittedChars += text.length;
  if (turn.emitted.length >= limits.emitted || turn.emittedChars > limits.emittedChars) {
    return reject(
      "emitted_exceeded",
      `a turn emits at most ${limits.emitted} events of ${limits.emittedChars} bytes together`,
    );
  }
  safe.append(turn.emitted, text);
}

export function collect(): string {
  let changed = "null";
  let flags = turn.event === null || turn.taken ? 0 : NOT_TAKEN;
  try {
    logRejections();
    if (persisted !== null) changed = persisted;
    else if (!turn.fault && actor) {
      const snapshot = actor.getSnapshot() as Snapshotlike;
      if (snapshot.status !== "active") flags |= FINISHED;
      // Always spelled anew: children, and contexts that are changed in place, move without a new snapshot object.
      actors = 0;
      const text = safe.wellFormed(snapshotText(snapshot));
      if (actors > limits.actors)
        reject("actors_exceeded", `a session has at most ${limits.actors} actors`);
      if (text !== published) changed = published = text;
      if (text.length > limits.snapshotChars)
        reject("snapshot_too_large", `the snapshot has more than ${limits.snapshotChars} bytes`);
    }
  } catch (error) {
    rejectThrown("snapshot_not_json", error);
  }
  if (turn.fault) return "[0," + faultText(turn.fault) + "]";
  const { emitted, timersSet, timersCancelled, logs, requests, withdrawn } = turn;
  const head = "[" + OUTBOX_FORMAT + "," + flags + "," + changed;
  const asks = requests.length | withdrawn.length;
  const more = emitted.length | timersSet.length | timersCancelled.length | logs.length | asks;
  if (!more && !turn.cause) return head + "]";
  const cause =
    turn.cause || asks ? "," + safe.wellFormed(safe.stringify(turn.cause) as string) : "";
  return (
    head +
    "," +
    safe.arrayText(emitted) +
    "," +
    safe.arrayText(timersSet) +
    "," +
    safe.arrayText(timersCancelled) +
    "," +
    safe.arrayText(logs) +
    cause +
    (asks ? "," + safe.arrayText(requests) + "," + safe.arrayText(withdrawn) : "") +
    "]"
  );
}

interface Snapshotlike {
  status: string;
  value?: unknown;
  context?: unknown;
  tags?: Set<unknown>;
  output?: unknown;
  error?: unknown;
  children?: Record<string, { getSnapshot(): Snapshotlike } | undefined>;
}

/**
 * XState's snapshot as clients see it: {value, context, status, tags, output?, error?, children?}. Spelled part by part,
 * which is cheaper than building an object for JSON.stringify to take apart: this runs for every event.
 */
function snapshotText(snapshot: Snapshotlike): string {
  const { stringify } = safe;
  let text = "{";
  const value = stringify(snapshot.value);
  if (value !== undefined) text += '"value":' + value + ",";
  const context = stringify(snapshot.context);
  if (context !== undefined) text += '"context":' + context + ",";
  text += '"status":' + stringify(snapshot.status);
  if (snapshot.tags) text += ',"tags":' + (snapshot.tags.size ? tagsText(snapshot.tags) : "[]");
  const output = snapshot.output === undefined ? undefined : stringify(snapshot.output);
  if (output !== undefined) text += ',"output":' + output;
  const error = snapshot.error === undefined ? undefined : stringify(publicError(snapshot.error));
  if (error !== undefined) text += ',"error":' + error;
  if (snapshot.children) {
    let children = "";
    for (const id in snapshot.children) {
      const child = safe.hasOwn(snapshot.children, id) ? snapshot.children[id] : undefined;
      if (child) actors++;
      if (child)
        children += (children && ",") + stringify(id) + ":" + snapshotText(child.getSnapshot());
    }
    if (children) text += ',"children":{' + children + "}";
  }
  return text + "}";
}

function tagsText(tags: Set<unknown>): string {
  const items: string[] = [];
  safe.setForEach(tags, (tag) => safe.append(items, safe.stringify(tag) ?? "null"));
  return safe.arrayText(items);
}

const publicError = (error: unknown): unknown =>
  safe.isError(error) ? { name: error.name, message: error.message } : error;

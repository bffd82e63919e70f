// What a turn leaves behind for the host: the outbox, and the first fault that rejects the turn.

import * as safe from "./intrinsics.ts";

export interface Fault {
  code: string;
  message: string;
  at?: string;
}

/**
 * Limits of one turn. They stand in machinehub/limits.py too, with their reasons. Those in bytes are only guarded against
 * here, by characters; the worker counts bytes (sandbox/instance.py).
 */
export const limits = {
  timers: 1000,
  logLines: 64,
  logChars: 4096,
  logTotalChars: 320 * 1024,
  snapshotChars: 256 * 1024,
  emitted: 256,
  emittedChars: 256 * 1024,
  actors: 1000,
  effects: 100,
  effectChars: 512 * 1024,
  /** 1 when the machine's egress rules let something out. */
  egress: 0,
};
export type Limits = typeof limits;

/** What a hub or a version says otherwise, once, before the machine is loaded: frozen into its image. */
export function setLimits(chosen: Partial<Limits>): void {
  for (const name of safe.keysOf(chosen) as (keyof Limits)[]) limits[name] = chosen[name] as number;
}

export const turn = {
  emitted: [] as string[],
  timersSet: [] as string[],
  timersCancelled: [] as string[],
  requests: [] as string[],
  withdrawn: [] as string[],
  requestChars: 0,
  logs: [] as string[],
  logChars: 0,
  emittedChars: 0,
  fault: null as Fault | null,
  /** The event that somebody sent, and whether a transition of the machine itself took it. */
  event: null as object | null,
  taken: false,
  /** Whether it is about something that the machine waited for (a timer, an answer), and the type of the event that it got of that: xstate.after..., xstate.done.actor..., or one that it raised. */
  awaited: false,
  cause: "",
};

export function clearTurn(): void {
  if (turn.emitted.length) turn.emitted = [];
  if (turn.timersSet.length) turn.timersSet = [];
  if (turn.timersCancelled.length) turn.timersCancelled = [];
  if (turn.requests.length) turn.requests = [];
  if (turn.withdrawn.length) turn.withdrawn = [];
  if (turn.logs.length) turn.logs = [];
  turn.logChars = turn.emittedChars = turn.requestChars = 0;
  turn.fault = turn.event = null;
  turn.taken = turn.awaited = false;
  turn.cause = "";
}

/** The machine itself gets an event. */
export function noteCause(type: unknown): void {
  if (turn.awaited && !turn.cause && typeof type === "string")
    turn.cause = safe.slice(type, 0, CAUSE_CHARS_MAX);
}

const CAUSE_CHARS_MAX = 300;
const FRAME = /machine\.js:(\d+):(\d+)/;

/** The fault as JSON, spelled by hand: no `toJSON` of anybody's has a say. */
export function faultText({ code, message, at }: Fault): string {
  const place = at === undefined ? "" : `,"at":${safe.stringify(at)}`;
  return safe.wellFormed(
    `{"code":${safe.stringify(code)},"message":${safe.stringify(message)}${place}}`,
  );
}

/** Rejects the turn. The first fault wins: what follows is usually its consequence. */
export function reject(code: string, message: string, at?: string): void {
  turn.fault ??= at === undefined ? { code, message } : { code, message, at };
}

/** What was thrown, as text of bounded size; `at` is "line:column" of the first frame in the user's bundle. */
export function describe(thrown: unknown): { name: string; message: string; at?: string } {
  let name = "Error";
  // eslint-disable-next-line no-useless-assignment -- without it the base image would be another one
  let message = "";
  let at: string | undefined;
  try {
    if (safe.isError(thrown)) {
      name = safe.slice(safe.toText(thrown.name), 0, 100);
      message = safe.slice(safe.toText(thrown.message), 0, 1000);
      const frame = safe.exec(FRAME, safe.slice(safe.toText(thrown.stack), 0, 20000));
      if (frame) at = frame[1] + ":" + frame[2];
    } else if (typeof thrown === "object" && thrown !== null) {
      message = safe.slice(safe.stringify(thrown) ?? "[object]", 0, 1000);
    } else {
      message = safe.slice(safe.toText(thrown), 0, 1000);
    }
  } catch {
    message = "a value that cannot be shown was thrown";
  }
  return at === undefined ? { name, message } : { name, message, at };
}

export function rejectThrown(code: string, thrown: unknown): void {
  const { name, message, at } = describe(thrown);
  reject(code, name === "Error" ? message : `${name}: ${message}`, at);
}

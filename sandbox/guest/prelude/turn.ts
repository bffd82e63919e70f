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
  logs: [] as string[],
  logChars: 0,
  emittedChars: 0,
  fault: null as Fault | null,
  /** The event that somebody sent, and whether a transition of the machine itself took it. */
  event: null as object | null,
  taken: false,
  /** Whether a timer has come due, and the type of the event that the machine got of it: xstate.after..., or one that it raised. */
  timer: false,
  cause: "",
};

export function clearTurn(): void {
  if (turn.emitted.length) turn.emitted = [];
  if (turn.timersSet.length) turn.timersSet = [];
  if (turn.timersCancelled.length) turn.timersCancelled = [];
  if (turn.logs.length) turn.logs = [];
  turn.logChars = turn.emittedChars = 0;
  turn.fault = turn.event = null;
  turn.taken = turn.timer = false;
  turn.cause = "";
}

/** The machine itself gets an event. */
export function noteCause(type: unknown): void {
  if (turn.timer && !turn.cause && typeof type === "string")
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

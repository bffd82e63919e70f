// Timers. The host keeps time; here is only who waits for what.
//
// `setTimeout` writes a row into the outbox and remembers the callback in the frozen memory. The host's timer comes back
// as an input. Delays are not capped at 2^31 ms as in browsers, so a long `after` never fires early.

import * as safe from "./intrinsics.ts";
import { describe, limits, reject, turn } from "./turn.ts";
import { log } from "./console.ts";

interface Timer {
  run: (...args: unknown[]) => unknown;
  args: unknown[];
  interval: number | null;
}

const timers = new Map<number, Timer>();
let lastId = 0;
let count = 0;
const FAR = 8.64e15; // the last instant a Date can name: "never"

function delayOf(value: unknown): number {
  const delay = safe.toNumber(value);
  return delay > 0 ? safe.ceil(delay) : 0; // NaN and negative numbers mean at once
}

function arm(id: number, delay: number): void {
  const due = safe.now() + delay;
  safe.append(turn.timersSet, `[${id},${due < FAR ? due : FAR}]`);
}

function add(run: unknown, delay: unknown, args: unknown[], repeat: boolean): number {
  if (typeof run !== "function") throw new TypeError("a timer needs a function");
  if (count >= limits.timers) {
    reject("timers_exceeded", `a session has at most ${limits.timers} timers`);
    throw new RangeError(`a session has at most ${limits.timers} timers`);
  }
  const id = ++lastId;
  const wait = delayOf(delay);
  safe.mapSet(timers, id, { run: run as Timer["run"], args, interval: repeat ? wait || 1 : null });
  count++;
  arm(id, wait);
  return id;
}

function cancel(id: unknown): void {
  if (typeof id !== "number" || !safe.mapDelete(timers, id)) return;
  count--;
  safe.append(turn.timersCancelled, `${id}`);
}

/** Forgets every timer, since the host knows of none yet; how many there were. For what is set while an image is built. */
export function dropTimers(): number {
  const dropped = count;
  for (let id = 1; id <= lastId; id++) safe.mapDelete(timers, id);
  count = 0;
  return dropped;
}

/** As if no timer had ever been set. */
export function forgetTimers(): void {
  dropTimers();
  lastId = 0;
}

/** A timer of the host came due. One that was cancelled meanwhile does nothing. */
export function fireTimer(id: number): void {
  const timer = safe.mapGet(timers, id) as Timer | undefined;
  if (!timer) return;
  if (timer.interval === null) {
    safe.mapDelete(timers, id);
    count--;
  } else arm(id, timer.interval);
  try {
    timer.run(...timer.args);
  } catch (error) {
    // As in a browser: an exception in a timer's callback is reported and undoes nothing else.
    const { name, message } = describe(error);
    log("error", `${name}: ${message}`);
  }
}

export function installTimers(): void {
  Object.assign(globalThis, {
    setTimeout: (run: unknown, delay?: unknown, ...args: unknown[]) => add(run, delay, args, false),
    setInterval: (run: unknown, delay?: unknown, ...args: unknown[]) => add(run, delay, args, true),
    clearTimeout: cancel,
    clearInterval: cancel,
  });
}

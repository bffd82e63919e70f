// Requests to the world. The host makes them; here is only who waits for what.
//
// A request is a row in the outbox, and what settles it stays in the frozen memory, until the host's answer comes back as an
// input. So a session may sleep, be killed or be replayed in between.

import * as safe from "./intrinsics.ts";
import { limits, reject, turn } from "./turn.ts";

/** What the host says became of a request: JSON of sandbox/protocol/effects.py, parsed. */
export type Answered = Record<string, unknown>;
type Settle = (answered: Answered) => void;

const waiting = new Map<number, unknown>();
let lastId = 0;
let count = 0;

/** Asks the host for something, as JSON; `settle` hears what becomes of it. Returns by what it can be taken back. */
export function request(text: string, settle: Settle): number {
  turn.requestChars += text.length;
  if (count >= limits.effects || turn.requestChars > limits.effectChars) {
    const most =
      count >= limits.effects
        ? `a session waits for at most ${limits.effects} requests`
        : `a turn asks for at most ${limits.effectChars} bytes of requests`;
    reject("effects_exceeded", most);
    throw new RangeError(most);
  }
  const id = ++lastId;
  count++;
  safe.mapSet(waiting, id, settle);
  safe.append(turn.requests, `[${id},${safe.wellFormed(text)}]`);
  return id;
}

/** Nobody waits for the request any more: the host need not make it, or stops. */
export function withdraw(id: number): void {
  if (!safe.mapDelete(waiting, id)) return;
  count--;
  safe.append(turn.withdrawn, `${id}`);
}

/** The host has an answer. One that nobody waits for changes nothing. */
export function settle(id: number, answered: Answered): void {
  const found = safe.mapGet(waiting, id) as Settle | undefined;
  if (!found) return;
  safe.mapDelete(waiting, id);
  count--;
  found(answered);
}

/** Forgets every request, since the host knows of none yet; how many there were. For what a file asks for while an image is built. */
export function dropRequests(): number {
  const dropped = count;
  for (let id = 1; id <= lastId; id++) safe.mapDelete(waiting, id);
  count = 0;
  return dropped;
}

/** What the polyfills need of this: they are a script of their own (polyfills.ts), which takes it away again. */
export interface Outside {
  request: typeof request;
  withdraw: typeof withdraw;
  /** Whether the machine's egress rules let anything out. */
  leaves(): boolean;
}
export const OUTSIDE = "machinehub outside";

export function lendOutside(): void {
  const lent: Outside = {
    request,
    withdraw,
    leaves: () => limits.egress > 0,
  };
  Object.assign(globalThis, { [OUTSIDE]: lent });
}

// Promises that are rejected, and nobody ever handles: an async action that throws, say. They undo nothing, since the turn that
// they belong to is over by then for XState, and would pass silently: they become lines of the machine's log.

import * as safe from "./intrinsics.ts";
import { log } from "./console.ts";
import { describe } from "./turn.ts";

/** More are not told apart from each other: a log has no more lines than that in a turn. */
const REMEMBERED = 64;

let waiting: { promise: unknown; reason: unknown }[] = [];

/** What the engine calls (`tell_rejection` in glue.c): `handled` when somebody listens to the promise after all. */
export function rejected(promise: unknown, reason: unknown, handled: boolean): void {
  if (handled) {
    const others: typeof waiting = [];
    for (let at = 0; at < waiting.length; at++) {
      const each = waiting[at] as (typeof waiting)[number];
      if (each.promise !== promise) safe.append(others, each);
    }
    waiting = others;
  } else if (waiting.length < REMEMBERED) safe.append(waiting, { promise, reason });
}

/** At the end of a turn, when all promise jobs are done. What was rejected while the file was loaded is in the first one's. */
export function logRejections(): void {
  if (!waiting.length) return;
  const rejections = waiting;
  waiting = [];
  for (let at = 0; at < rejections.length; at++) {
    const { name, message } = describe((rejections[at] as (typeof rejections)[number]).reason);
    log("error", `a promise was rejected, and nothing handles that: ${name}: ${message}`);
  }
}

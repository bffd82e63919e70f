// The session's actor system: the one whose machines are run from tables.

import type { Scope, SystemLike } from "./types.ts";

/** The session's actor system, for as long as nobody inspects it; null before the session starts, and after that. */
export let quiet: SystemLike | null = null;
let adopting = false;

/** The next root actor to be made is the session's. */
export function expectRoot(): void {
  adopting = true;
}

/** Takes the system of a root actor that begins, if it is the one that was expected. */
export function adopt(scope: Scope): void {
  if (!adopting || scope.self._parent !== undefined) return;
  adopting = false;
  const { system } = scope;
  quiet = system;
  const inspect = system.inspect.bind(system);
  // An inspector is told of every microstep with a snapshot of its own, which the tables do not make.
  system.inspect = (observer) => {
    quiet = null;
    return inspect(observer);
  };
}

/** As if there had been no session. */
export function forgetSystem(): void {
  quiet = null;
  adopting = false;
}

// How long to wait before the next try: full jitter, so that a thousand clients of a hub that restarts do not come back in step.
// Source: Marc Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.

const FIRST_MS = 500;
const MOST_MS = 8_000;

/** For the `attempt`th try in a row that failed, from 1; `random` gives numbers in [0, 1). */
export function backoffMs(attempt: number, random: () => number = Math.random): number {
  return attempt <= 0 ? 0 : random() * Math.min(MOST_MS, FIRST_MS * 2 ** (attempt - 1));
}

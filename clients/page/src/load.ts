// What is fetched: loading, there, or refused. Answers that come too late are not shown.

import { useCallback, useEffect, useState } from "react";
import { type Problem, problemOf } from "./api.ts";

export interface Loaded<T> {
  readonly data?: T;
  readonly problem?: Problem;
  readonly again: () => void;
}

const FRESH_MS = 4_000;

/** Asks again every few seconds, as long as what it is for is on a screen that somebody may look at. */
export function useFresh(again: () => void): void {
  useEffect(() => {
    const timer = setInterval(() => document.visibilityState === "visible" && again(), FRESH_MS);
    return () => clearInterval(timer);
  }, [again]);
}

/** Fetches when `key` changes (not at all for undefined), and `again` when asked. What was there stays until its successor comes, or for good when that is refused. */
export function useLoaded<T>(key: string | undefined, load: () => Promise<T>): Loaded<T> {
  const [held, setHeld] = useState<{ key?: string; data?: T; problem?: Problem }>({});
  const [round, setRound] = useState(0);
  useEffect(() => {
    if (key === undefined) return undefined;
    let wanted = true;
    load().then(
      (data) => wanted && setHeld({ key, data }),
      (error: unknown) =>
        wanted && setHeld((before) => ({ ...before, key, problem: problemOf(error) })),
    );
    return () => void (wanted = false);
  }, [key, round]);
  const again = useCallback(() => setRound((number) => number + 1), []);
  return {
    ...(held.data === undefined ? {} : { data: held.data }),
    ...(held.problem === undefined ? {} : { problem: held.problem }),
    again,
  };
}

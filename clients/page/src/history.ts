// A session's journal, as far as the page shows it: the newest steps, and older ones on demand.

import { useCallback, useEffect, useRef, useState } from "react";
import { type Entry, Problem, readJournal } from "./api.ts";

const NEWEST = 50;
const OLDER = 200;
const KEPT = 1_000;
const WAIT_MS = 120;

export interface History { readonly entries: readonly Entry[]; readonly problem: Problem | undefined; readonly older: (() => void) | undefined; readonly again: () => void }

/** Follows the session: asks for what is new soon after `seq` moved, not for each step of it. */
export function useHistory(machine: string, session: string, seq: number): History {
  const [entries, setEntries] = useState<readonly Entry[]>([]);
  const [problem, setProblem] = useState<Problem>();
  const [round, setRound] = useState(0);
  const busy = useRef(false);
  const wanted = useRef(0);
  const known = useRef<readonly Entry[]>([]);
  wanted.current = seq;

  const take = useCallback((more: readonly Entry[]) => {
    const all = new Map([...known.current, ...more].map((entry) => [`${entry.seq}.${entry.attempt}`, entry]));
    known.current = [...all.values()].sort((one, other) => one.seq - other.seq || one.attempt - other.attempt).slice(-KEPT);
    setEntries(known.current);
  }, []);
  const follow = useCallback(async () => {
    if (busy.current) return;
    busy.current = true;
    try {
      do {
        const last = known.current.at(-1)?.seq ?? 0;
        const from = Math.max(1, last, wanted.current - NEWEST);
        const more = await readJournal(machine, session, from, OLDER);
        take(more);
        setProblem(undefined);
        if ((more.at(-1)?.seq ?? 0) <= last) break;
      } while ((known.current.at(-1)?.seq ?? 0) < wanted.current);
    } catch (error) {
      setProblem(error instanceof Problem ? error : new Problem(0, "unexpected", String(error)));
    } finally {
      busy.current = false;
    }
  }, [machine, session, take]);
  useEffect(() => {
    if (seq === 0) return undefined;
    const timer = setTimeout(() => void follow(), WAIT_MS);
    return () => clearTimeout(timer);
    // A stream of updates must not put it off for ever: every so many, it is asked for anyway.
  }, [Math.floor(seq / 10), round, follow, seq % 10 === 0 ? 0 : seq]);

  const first = entries[0]?.seq ?? 0;
  const older = first > 1 ? () => void readJournal(machine, session, Math.max(1, first - OLDER), OLDER).then(take, setProblem) : undefined;
  return { entries, problem, older, again: useCallback(() => setRound((number) => number + 1), []) };
}

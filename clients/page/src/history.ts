// A session's journal, as far as the page shows it: the newest steps, and older ones on demand.

import { useCallback, useEffect, useRef, useState } from "react";
import { type Entry, type Problem, problemOf, readJournal } from "./api.ts";

const NEWEST = 50;
const PAGE = 200;
const WAIT_MS = 200;
/** Pages that are fetched in a row, when many events were rejected at one step. */
const ROUNDS = 20;
/** A page that is open for days forgets what is older, unless that was asked for. */
const KEPT = 1_000;

export interface History {
  readonly entries: readonly Entry[];
  readonly problem: Problem | undefined;
  readonly older: (() => void) | undefined;
  readonly again: () => void;
}

/** Follows the session: asks for what is new soon after `seq` moved, once for all that moved it until then. */
export function useHistory(machine: string, session: string, seq: number): History {
  const [entries, setEntries] = useState<readonly Entry[]>([]);
  const [problem, setProblem] = useState<Problem>();
  const known = useRef<readonly Entry[]>([]);
  const kept = useRef(KEPT);
  const wanted = useRef(0);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  const busy = useRef(false);
  /** Whether it is to be asked once more, when the answer that is waited for has come: by another token, perhaps. */
  const anew = useRef(false);
  // A session that was started anew counts from the beginning again.
  if (seq > 0 && seq < wanted.current) known.current = [];
  wanted.current = seq;

  const take = useCallback((more: readonly Entry[]) => {
    known.current = merged(known.current, more).slice(-kept.current);
    setEntries(known.current);
  }, []);
  const fail = useCallback((error: unknown) => setProblem(problemOf(error)), []);
  const follow = useCallback(async () => {
    if (busy.current) return;
    busy.current = true;
    try {
      for (let round = 0; round < ROUNDS; round++) {
        const last = known.current.at(-1);
        // After a gap that is too long to fetch, the list begins anew with what is newest.
        const far = last === undefined || wanted.current - last.seq > PAGE;
        const more = await readJournal(
          machine,
          session,
          far ? { from: Math.max(1, wanted.current - NEWEST) } : { after: last },
          PAGE,
        );
        if (far) known.current = [];
        take(more);
        if (more.length < PAGE) break;
      }
      setProblem(undefined);
    } catch (error) {
      fail(error);
    } finally {
      busy.current = false;
    }
    if (!anew.current) return;
    anew.current = false;
    void follow();
  }, [machine, session, take, fail]);
  const soon = useCallback(() => {
    timer.current ??= setTimeout(() => {
      timer.current = undefined;
      void follow();
    }, WAIT_MS);
  }, [follow]);
  useEffect(() => {
    if (seq > 0 && problem?.status !== 401) soon();
  }, [seq, soon, problem?.status]);
  const newest = entries.at(-1)?.seq ?? 0;
  useEffect(() => {
    if (newest > 0 && newest < wanted.current) soon(); // it went on meanwhile
  }, [newest, soon]);
  useEffect(
    () => () => {
      clearTimeout(timer.current);
      timer.current = undefined;
    },
    [],
  );

  const first = entries[0]?.seq ?? 0;
  const older =
    first > 1
      ? () =>
          void before(machine, session, first).then((more) => {
            kept.current += more.length;
            take(more);
          }, fail)
      : undefined;
  const again = useCallback(() => {
    anew.current = busy.current;
    void follow();
  }, [follow]);
  return { entries, problem, older, again };
}

/** The steps just before one, with all that was rejected at them. */
async function before(machine: string, session: string, seq: number): Promise<Entry[]> {
  const found = await readJournal(machine, session, { from: Math.max(1, seq - PAGE) }, PAGE);
  for (let round = 0; round < ROUNDS; round++) {
    const last = found.at(-1);
    if (last === undefined || last.seq >= seq) break;
    const more = await readJournal(machine, session, { after: last }, PAGE);
    found.push(...more);
    if (more.length < PAGE) break;
  }
  return found.filter((entry) => entry.seq < seq);
}

function merged(known: readonly Entry[], more: readonly Entry[]): readonly Entry[] {
  const all = new Map([...known, ...more].map((entry) => [`${entry.seq}.${entry.attempt}`, entry]));
  return [...all.values()].sort((one, other) => one.seq - other.seq || one.attempt - other.attempt);
}

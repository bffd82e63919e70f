// A step of the past: how the session was then, and what brought it there.

import { useState } from "react";
import { type Entry, Problem, readAt, readJournal, type Snapshot } from "./api.ts";
import type { Cause } from "./chart/taken.ts";

export interface Moment {
  readonly seq: number;
  readonly snapshot: Snapshot;
  readonly before: Snapshot | undefined;
}

export async function pastOf(machine: string, session: string, seq: number): Promise<Moment> {
  const [at, before] = await Promise.all([
    readAt(machine, session, seq),
    seq > 1 ? readAt(machine, session, seq - 1).catch(() => undefined) : undefined,
  ]);
  return { seq, snapshot: at.snapshot, before: before?.snapshot };
}

/** A step of the journal; who may not read that sees the state all the same. */
export async function entryAt(machine: string, session: string, seq: number): Promise<Entry> {
  const found = await readJournal(machine, session, { from: seq }, 1).catch(() => []);
  return (
    found.find((entry) => entry.seq === seq && entry.outcome === "accepted") ?? {
      seq,
      attempt: 0,
      kind: "event",
      at: "",
      outcome: "accepted",
      changed: true,
    }
  );
}

export function causeOf(entry: Entry | undefined): Cause {
  return entry === undefined
    ? {}
    : { event: entry.event?.type, kind: entry.kind, changed: entry.changed };
}

export function MomentBanner({
  seq,
  loading,
  problem,
  back,
  fork: forkIt,
}: {
  seq: number;
  loading: boolean;
  problem: Problem | undefined;
  back: () => void;
  fork: () => Promise<void>;
}) {
  const [trouble, setTrouble] = useState("");
  const start = (): void =>
    void forkIt().catch((error: unknown) =>
      setTrouble(error instanceof Problem ? `${error.message} (${error.code})` : String(error)),
    );
  return (
    <p className="banner" role="status">
      {problem
        ? `Input ${seq} cannot be shown: ${problem.message} `
        : loading
          ? `Looking up input ${seq}… `
          : `As it was after input ${seq}. `}
      <button onClick={back}>Back to live</button>{" "}
      {!problem && <button onClick={start}>Fork from here</button>}{" "}
      {trouble && `Not forked: ${trouble}`}
    </p>
  );
}

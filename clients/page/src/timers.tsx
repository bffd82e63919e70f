// What waits for its time, with a countdown: the delays of active states, and whatever else was set.

import type { Definition, StateNode } from "@machinehub/client";
import { activeNodes } from "@machinehub/client";
import { useEffect, useState } from "react";
import { type Entry, readTimers, type Timer } from "./api.ts";
import { countdown, eventText } from "./chart/graph.ts";
import type { History } from "./history.ts";
import { useLoaded } from "./load.ts";
import { visible } from "./text.ts";

export interface Pending {
  readonly dueMs: number;
  /** Of the state whose delay it is; undefined where that is not known. */
  readonly state: string | undefined;
  readonly text: string;
}

/**
 * Names timers: a delay of an active state is one that was set exactly so long before it is due, by a step that is in the history.
 * What is computed, or older than the history, has no name.
 */
export function named(
  timers: readonly Timer[],
  active: readonly StateNode[],
  entries: readonly Entry[],
): readonly Pending[] {
  const times = new Set(entries.map((entry) => Date.parse(entry.at)));
  const delays = active.flatMap((node) =>
    (node.transitions ?? [])
      .filter(({ kind }) => kind === "after")
      .map((transition) => ({
        node,
        transition,
        ms: typeof transition.delay === "number" ? transition.delay : transition.delayMs,
      })),
  );
  return timers
    .map(({ due_at }) => {
      const dueMs = Date.parse(due_at);
      const found = delays.find(({ ms }) => ms !== undefined && times.has(dueMs - Math.ceil(ms)));
      return found === undefined
        ? { dueMs, state: undefined, text: "timer" }
        : { dueMs, state: found.node.id, text: eventText(found.transition, found.node) };
    })
    .sort((one, other) => one.dueMs - other.dueMs);
}

/** Fetched anew whenever the history has grown, which follows a busy session at its own pace. Who may not read that sees none. */
export function usePending(
  machine: string,
  session: string,
  definition: Definition | undefined,
  value: unknown,
  { entries, problem }: History,
): readonly Pending[] {
  const newest = problem === undefined ? entries.at(-1)?.seq : undefined;
  const loaded = useLoaded(
    newest === undefined ? undefined : `${machine} ${session} ${newest}`,
    () => readTimers(machine, session),
  );
  if (loaded.data === undefined || definition === undefined) return [];
  return named(loaded.data, activeNodes(definition.root, value), entries);
}

const SHOWN = 6;

export function Timers({ pending }: { pending: readonly Pending[] }) {
  const [nowMs, setNowMs] = useState(Date.now);
  const waits = pending.length > 0;
  useEffect(() => {
    if (!waits) return undefined;
    setNowMs(Date.now());
    const timer = setInterval(() => setNowMs(Date.now()), 250);
    return () => clearInterval(timer);
  }, [waits]);
  if (!waits) return null;
  return (
    <section aria-label="Timers">
      <h2>Timers</h2>
      <ul className="timers">
        {pending.slice(0, SHOWN).map((each, index) => (
          <li key={index}>
            <b>{countdown(each.dueMs - nowMs)}</b>
            {` ${visible(each.text)}`}
            {each.state !== undefined && (
              <span className="quiet">{` in ${visible(each.state)}`}</span>
            )}
          </li>
        ))}
        {pending.length > SHOWN && <li>{`and ${pending.length - SHOWN} more`}</li>}
      </ul>
    </section>
  );
}

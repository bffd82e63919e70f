// Which transition to flash on the chart of a live session.

import { useCallback, useEffect, useRef, useState } from "react";
import type { Definition, State } from "@machinehub/client";
import type { Taken } from "./chart/chart.tsx";
import { type Cause, taken } from "./chart/taken.ts";
import { type History } from "./history.ts";
import { causeOf } from "./past.tsx";

const REMEMBERED = 64;
const RECENT_MS = 10_000;

/** What to flash. The journal says which event it was; who may not read it sees what the states alone give away. */
export function useTaken(definition: Definition | undefined, state: State, history: History) {
  const states = useRef<State[]>([]);
  const flashed = useRef(0);
  const [flash, setFlash] = useState<Taken>();
  if (state.seq > 0 && states.current.at(-1)?.seq !== state.seq)
    states.current = [...states.current, state].slice(-REMEMBERED);

  const explain = useCallback(
    (seq: number, cause: Cause) => {
      const before = states.current.findLast((one) => one.seq < seq);
      const after = states.current.find((one) => one.seq === seq);
      if (
        definition === undefined ||
        before === undefined ||
        after === undefined ||
        seq <= flashed.current
      )
        return;
      flashed.current = seq;
      setFlash({ ...taken(definition, before.value, after.value, cause), seq });
    },
    [definition],
  );
  const blind = history.problem !== undefined;
  useEffect(() => {
    if (blind) explain(state.seq, {});
  }, [state.seq, explain, blind]);
  const last = history.entries.findLast((entry) => entry.outcome === "accepted" && entry.changed);
  useEffect(() => {
    if (last !== undefined && last.kind !== "start" && Date.now() - Date.parse(last.at) < RECENT_MS)
      explain(last.seq, causeOf(last));
  }, [last, explain]);
  return {
    flash,
    before: states.current.at(-2)?.context as unknown,
    changedAt: (seq: number): boolean => states.current.some((one) => one.seq === seq),
  };
}

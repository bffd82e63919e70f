// Sessions stay on the version that they began on: says so when a newer one is live, and starts the session anew on it.

import { useState } from "react";
import { problemOf, readMachine, restart } from "./api.ts";
import { useFresh, useLoaded } from "./load.ts";
import { visible } from "./text.ts";

export function NewerVersion({
  machine,
  session,
  version,
}: {
  machine: string;
  session: string;
  /** The session's; undefined as long as it is not known. */
  version: number | undefined;
}) {
  const live = useLoaded(`${machine} ${version ?? 0}`, () => readMachine(machine));
  useFresh(live.again);
  const [trouble, setTrouble] = useState("");
  const newest = live.data?.version;
  if (newest === undefined || version === undefined || newest === version) return null;
  const start = async (): Promise<void> => {
    if (!confirm(`Start ${session} anew on version ${newest}? What it is now is deleted.`)) return;
    setTrouble("");
    try {
      await restart(machine, session);
    } catch (error) {
      setTrouble(`Not started: ${visible(problemOf(error).message)}`);
    }
  };
  return (
    <p className="banner" role="status">
      {`Version ${newest} is live, this session runs version ${version}. `}
      <button onClick={() => void start()}>{`Start anew on version ${newest}`}</button> {trouble}
    </p>
  );
}

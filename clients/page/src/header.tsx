// What stands above the chart: which machine, which session, where it is, and who is there.

import type { Presence, Problem as Trouble, Status } from "@machinehub/client";
import { useEffect, useState } from "react";
import { countdown } from "./chart/graph.ts";
import { visible } from "./text.ts";

export function Header({
  name,
  session,
  value,
  step,
  status,
  trouble,
  presence,
  version,
  isPrivate,
  waits,
}: {
  name: string;
  session: string;
  value: unknown;
  step: string;
  status: Status;
  trouble: Trouble | null;
  presence: Presence;
  version: number | undefined;
  isPrivate: boolean;
  /** When the next timer is due, where one waits. */
  waits: number | undefined;
}) {
  return (
    <header>
      <h1>{name}</h1>
      <span className="session" title="session">
        {visible(session)}
      </span>
      <span className="quiet">{version === undefined ? "" : `version ${version}`}</span>
      <span
        className="quiet"
        title={isPrivate ? "its sessions want a connect token" : "whoever has the URL may use it"}
      >
        {isPrivate ? "private" : "public"}
      </span>
      <span className="value" aria-live="polite" title="state">
        {visible(valueText(value))}
        {waits !== undefined && <Waits dueMs={waits} />}
      </span>
      <span className="grow" />
      <span className="quiet step">{step}</span>
      <span className="quiet">{`${presence.count} here`}</span>
      <span
        className="status"
        role="status"
        data-status={status}
        title={trouble ? `${trouble.code}: ${trouble.detail}` : ""}
      >
        {status === "open" ? "connected" : status}
      </span>
    </header>
  );
}

function Waits({ dueMs }: { dueMs: number }) {
  const [nowMs, setNowMs] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNowMs(Date.now()), 250);
    return () => clearInterval(timer);
  }, []);
  // Not read out: every second would be.
  return (
    <span className="quiet" aria-hidden="true" title="until the next timer">
      {` ${countdown(dueMs - nowMs)}`}
    </span>
  );
}

function valueText(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value !== "object" || value === null) return "";
  return Object.entries(value)
    .map(([key, inner]) =>
      valueText(inner)
        ? `${key}: ${typeof inner === "object" ? `(${valueText(inner)})` : valueText(inner)}`
        : key,
    )
    .join(", ");
}

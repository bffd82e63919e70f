// The page's address is the machine's: /{machine}[@version][/{session}]. Opening another session is going somewhere.

import { useSyncExternalStore } from "react";
import { base, onSite } from "./base.ts";

export interface Route {
  readonly machine: string;
  readonly version: number | undefined;
  readonly session: string | undefined;
}

export function readRoute(path: string): Route {
  const [, first = "", second] = (path.startsWith(base) ? path.slice(base.length) : path).split(
    "/",
  );
  const [machine = "", version] = first.split("@");
  let session: string | undefined;
  try {
    session = second ? decodeURIComponent(second) : undefined;
  } catch {
    session = second;
  }
  return { machine, version: version ? Number(version) : undefined, session };
}

export const pathOf = ({ machine, version, session }: Route): string =>
  onSite(
    `/${machine}${version === undefined ? "" : `@${version}`}${session === undefined ? "" : `/${encodeURIComponent(session)}`}`,
  );

/** The step that the address names: it can be sent to somebody. */
export function stepInAddress(): number | undefined {
  const at = new URLSearchParams(location.search).get("at");
  return at !== null && /^[1-9]\d{0,14}$/.test(at) ? Number(at) : undefined;
}

export function nameStep(step: number | undefined): void {
  if (step !== stepInAddress())
    history.replaceState(
      null,
      "",
      `${location.pathname}${step === undefined ? "" : `?at=${step}`}`,
    );
}

export function goTo(route: Route): void {
  history.pushState(null, "", pathOf(route));
  dispatchEvent(new PopStateEvent("popstate"));
}

const subscribe = (listener: () => void): (() => void) => {
  addEventListener("popstate", listener);
  return () => removeEventListener("popstate", listener);
};

/** The path, as it changes. */
export const usePath = (): string => useSyncExternalStore(subscribe, () => location.pathname);

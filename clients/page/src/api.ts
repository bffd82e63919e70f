// The hub's public API, as anybody may use it. Where a hub wants a token the page asks for one, and keeps it in this tab only:
// one of the hub's tokens, and, apart from that, a connect token, which says who somebody is in sessions.

import type { Definition } from "@machinehub/client";
import { onSite } from "./base.ts";

export interface MachineInfo {
  readonly id: string;
  readonly name: string;
  readonly version: number;
  readonly definition: Definition;
  readonly url: string;
  /** Whether its sessions want a connect token. */
  readonly private: boolean;
}
export interface MachineItem {
  readonly id: string;
  readonly name: string;
  readonly url: string;
  readonly active_version: number | null;
  readonly created_at: string;
}
export interface Version {
  readonly number: number;
  readonly message: string;
  readonly created_at: string;
  readonly active: boolean;
  /** What the build had to say. */
  readonly warnings: readonly string[];
}
export interface SessionItem {
  readonly id: string;
  readonly version: number;
  readonly seq: number;
  readonly finished: boolean;
  readonly connections: number;
  readonly created_at: string;
  readonly parent: { id: string; at: number } | null;
}
export interface Entry {
  readonly seq: number;
  readonly attempt: number;
  readonly kind: "start" | "event" | "presence" | "timer" | "answer";
  readonly at: string;
  readonly outcome: "accepted" | "rejected";
  readonly changed: boolean;
  /** Whether a transition took the event; absent where nobody knows. */
  readonly taken?: boolean;
  /** Of a timer: the type of the event that the machine got of it. */
  readonly cause?: string;
  /** Of an answer: which request it is to, and what came. */
  readonly effect?: number;
  readonly answer?: { status?: number; error?: { code: string; detail: string } };
  readonly error?: { code: string; detail: string };
  readonly event?: { type: string; [key: string]: unknown };
  readonly input?: unknown;
  readonly sender?: { id: string; user?: string };
}
/** A request of a session to the world. */
export interface Effect {
  readonly id: number;
  /** The input that it was asked at. */
  readonly seq: number;
  readonly state: "pending" | "held" | "ended";
  readonly request: { readonly method: string; readonly url: string };
  readonly tries: number;
  readonly next_try_at: string | null;
  readonly trouble: string | null;
  readonly outcome: string | null;
  readonly status: number | null;
  readonly ms: number | null;
}
export interface Snapshot {
  readonly value: unknown;
  readonly context: unknown;
  readonly status: string;
  readonly tags?: readonly string[];
  readonly output?: unknown;
  readonly error?: unknown;
}

export class Problem extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    detail: string,
  ) {
    super(detail);
  }
}

/** Whatever was thrown, as something that can be shown. */
export const problemOf = (error: unknown): Problem =>
  error instanceof Problem ? error : new Problem(0, "unexpected", String(error));

const TOKEN = "machinehub.token";
const MEMBER = "machinehub.member";

const kept = (name: string): string => {
  try {
    return sessionStorage.getItem(name) ?? "";
  } catch {
    return "";
  }
};

export const token = (): string => kept(TOKEN);
/** The connect token. */
export const member = (): string => kept(MEMBER);
/** What opens this page's machine: nothing, or one of the two. */
let opens = "";

/** Whether that can be a token at all: it goes into a header. */
export function keepToken(text: string): boolean {
  const given = text.trim();
  if (!/^[\x21-\x7e]+$/.test(given)) return false;
  try {
    sessionStorage.setItem(/^ey[^.]*\.[^.]*\.[^.]*$/.test(given) ? MEMBER : TOKEN, given);
  } catch {
    // then it is asked for again
  }
  return true;
}

async function call<T>(path: string, init: RequestInit = {}): Promise<T> {
  const headers = new Headers({
    Accept: "application/json",
    ...(init.body ? { "Content-Type": "application/json" } : {}),
  });
  const shown = path.startsWith("/api/") ? token() : opens;
  if (shown) headers.set("Authorization", `Bearer ${shown}`);
  let response: Response;
  try {
    response = await fetch(onSite(path), { ...init, headers });
  } catch {
    throw new Problem(0, "unreachable", "the hub cannot be reached");
  }
  const text = response.status === 204 ? "{}" : await response.text();
  const body = parsed(text) as { code?: string; detail?: string };
  if (!response.ok)
    throw new Problem(
      response.status,
      body.code ?? "unexpected",
      body.detail ?? `the hub answered ${response.status}`,
    );
  return body as T;
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return {};
  }
}

const machinePath = (machine: string): string => `/api/v1/machines/${encodeURIComponent(machine)}`;
/** Browsers take two ids for a way up, however they are written: those can be had by the command line. */
const sessionPath = (machine: string, session: string): string => {
  if (session === "." || session === "..")
    throw new Problem(0, "invalid_session_id", `a browser cannot name the session ${session}`);
  return `${machinePath(machine)}/sessions/${encodeURIComponent(session)}`;
};

export const readMachine = (machine: string, version?: number): Promise<MachineInfo> =>
  call(`/${machine}${version === undefined ? "" : `@${version}`}`);
/** What a page shows to use a machine: a connect token if there is one, nothing for a public machine, else the hub's token. */
export async function wayIn(machine: string, version?: number): Promise<string> {
  const [first = "", ...others] = [...new Set([member(), "", token()])];
  let trouble: unknown;
  for (opens of [first, ...others])
    try {
      await readMachine(machine, version);
      return opens;
    } catch (error) {
      if (problemOf(error).status !== 401) throw error;
      trouble ??= error;
    }
  throw problemOf(trouble);
}
/** What this page's token may do; nothing without one. */
export const readScopes = async (): Promise<readonly string[]> =>
  (await call<{ scopes: readonly string[] }>("/api/v1/whoami")).scopes;
/** Ends all connect tokens of a user, and what they opened. */
export async function revoke(machine: string, user: string): Promise<void> {
  const { project } = await call<{ project: string }>(machinePath(machine));
  await call(`/api/v1/projects/${encodeURIComponent(project)}/revocations`, {
    method: "POST",
    body: JSON.stringify({ sub: user }),
  });
}
export const readMachines = async (): Promise<MachineItem[]> =>
  (await call<{ data: MachineItem[] }>("/api/v1/machines?limit=200")).data;
export const readVersions = async (machine: string): Promise<Version[]> =>
  (await call<{ data: Version[] }>(`${machinePath(machine)}/versions?limit=100`)).data;
export interface Page<T> {
  readonly data: readonly T[];
  readonly next: string | null;
}
/** Sessions by id, from the first on or from where a page before ended. */
export const readSessions = (machine: string, cursor?: string): Promise<Page<SessionItem>> =>
  call(
    `${machinePath(machine)}/sessions?limit=100${cursor === undefined ? "" : `&cursor=${encodeURIComponent(cursor)}`}`,
  );
/** Steps from a seq on, or behind an entry that is known. */
export const readJournal = async (
  machine: string,
  session: string,
  where: { from: number } | { after: Entry },
  limit: number,
): Promise<Entry[]> => {
  const query =
    "from" in where ? `from=${where.from}` : `after=${where.after.seq}.${where.after.attempt}`;
  return (
    await call<{ data: Entry[] }>(
      `${sessionPath(machine, session)}/journal?${query}&limit=${limit}`,
    )
  ).data;
};
export const readAt = (
  machine: string,
  session: string,
  seq: number,
): Promise<{ version: number; snapshot: Snapshot }> =>
  call(`/${machine}/${encodeURIComponent(session)}?at=${seq}`);
export const fork = (machine: string, session: string, at: number): Promise<SessionItem> =>
  call(`${sessionPath(machine, session)}/fork`, { method: "POST", body: JSON.stringify({ at }) });
export interface CalendarItem {
  readonly name: string;
  readonly expression: string;
  readonly zone: string;
  readonly session: string;
  readonly event: { type: string };
  readonly next_at: string | null;
  /** The newest first. */
  readonly runs: readonly { at: string; outcome: string; seq: number | null }[];
}
export const readCalendar = async (machine: string): Promise<readonly CalendarItem[]> =>
  (await call<{ data: readonly CalendarItem[] }>(`${machinePath(machine)}/cron`)).data;
export interface Timer {
  readonly id: number;
  readonly due_at: string;
}
/** What waits for its time. */
export const readTimers = async (machine: string, session: string): Promise<readonly Timer[]> =>
  (await call<{ timers: readonly Timer[] }>(sessionPath(machine, session))).timers;
/** What it asked of the world, the newest first. */
export const readEffects = async (machine: string, session: string): Promise<readonly Effect[]> =>
  (await call<Page<Effect>>(`${sessionPath(machine, session)}/effects?limit=50`)).data;
/** Deletes the session, and starts it anew on the active version. */
export const restart = (machine: string, session: string): Promise<SessionItem> =>
  call(`${sessionPath(machine, session)}/restart`, { method: "POST" });
export const deleteSession = (machine: string, session: string): Promise<unknown> =>
  call(sessionPath(machine, session), { method: "DELETE" });

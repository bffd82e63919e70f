// What a store asks of the way to its hub, and what both ways have in common.

import { host } from "./key.ts";
import type { Outgoing } from "./outbox.ts";
import type { Problem } from "./types.ts";

/** A frame of the hub's (docs/protocol.md). */
export type Frame = { readonly type: string; readonly [field: string]: unknown };

export interface Listener {
  /** A frame came. The first on every connection is a snapshot. */
  frame(frame: Frame): void;
  /** The connection is gone; another is tried, unless it is `final`. */
  lost(problem: Problem, final: boolean): void;
}

export interface Transport {
  open(): void;
  /** Sends events, in order. They may get lost; what became of them is an `ack` frame. */
  send(events: readonly Outgoing[]): void;
  /** Says something of this member, as JSON text. */
  describe(metadata: string): void;
  /** Tries again at once, when it waits. */
  hurry(): void;
  close(): void;
}

export interface Address {
  readonly url: string;
  readonly sessionId: string;
  readonly key: string;
  readonly input?: unknown;
  readonly token?: string | (() => string | Promise<string>) | undefined;
  readonly publishableKey?: string | undefined;
}

/** Codes after which trying again is no use. */
export const FINAL_CODES: ReadonlyMap<number, string> = new Map([
  [4001, "unauthorised"],
  [4003, "forbidden"],
  [4004, "no_such_machine"],
  [1008, "refused"],
]);

/** The machine's URL, http(s). Relative ones are the page's; what comes behind `?` or `#` is not the machine's. */
export function machineUrl(url: string): string {
  const [path = ""] = url.split(/[?#]/);
  const origin = path.startsWith("/") ? (host.location?.origin ?? "") : "";
  return `${origin}${path.replace(/\/+$/, "")}`.replace(/^ws/i, "http");
}

export function sessionUrl(url: string, sessionId: string): string {
  return `${machineUrl(url)}/${encodeURIComponent(sessionId)}`;
}

/** What is wrong with an address, and will still be wrong next time. */
export function wrong(address: Address): Problem | undefined {
  if (typeof address.url !== "string" || !/^https?:\/\/[^/]+\/./i.test(machineUrl(address.url)))
    return { code: "invalid_url", detail: `${JSON.stringify(address.url)} is not a machine's URL` };
  const { sessionId } = address;
  if (typeof sessionId !== "string" || /^(|\.|\.\.|-.*)$/s.test(sessionId))
    return {
      code: "invalid_session_id",
      detail:
        "a session id is 1 to 128 characters, does not begin with a dash, and is neither . nor ..",
    };
  try {
    encodeURIComponent(sessionId);
  } catch {
    return {
      code: "invalid_session_id",
      detail: "the session id holds half a character, which is no text",
    };
  }
  try {
    inputText(address);
  } catch (error) {
    return { code: "invalid_input", detail: `the input is not JSON: ${String(error)}` };
  }
  const { token, publishableKey } = address;
  if ([token, publishableKey].some((shown) => typeof shown === "string" && !TOKEN.test(shown)))
    return { code: "invalid_token", detail: NO_TOKEN };
  return undefined;
}

/** The query of a session's URL: who asks, and what a new session begins with. */
export function query(parts: { [name: string]: string | undefined }): string {
  return (
    "?" +
    Object.entries(parts)
      .filter((part): part is [string, string] => part[1] !== undefined)
      .map(([name, value]) => `${name}=${encodeURIComponent(value)}`)
      .join("&")
  );
}

export const inputText = (address: Address): string | undefined =>
  address.input === undefined ? undefined : JSON.stringify(address.input);

/** The token for one connection. Whatever goes wrong in a `token` function, or takes for ever, is an error of its own, and is tried again. */
export async function tokenOf(address: Address): Promise<string | undefined> {
  if (typeof address.token !== "function") return address.token; // `wrong` has looked at it
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>(
    (_, reject) =>
      (timer = setTimeout(() => reject(new Error("the token function does not answer")), TOKEN_MS)),
  );
  try {
    const token = await Promise.race([address.token(), late]);
    if (!TOKEN.test(token)) throw new Error(NO_TOKEN);
    return token;
  } finally {
    clearTimeout(timer);
  }
}

export async function headersOf(
  address: Address,
  more: { [name: string]: string },
): Promise<{ [name: string]: string }> {
  const token = await tokenOf(address);
  const { publishableKey } = address;
  const known = {
    ...more,
    "Machinehub-Client": encodeURIComponent(address.key),
    ...(publishableKey === undefined ? {} : { "Machinehub-Key": publishableKey }),
  };
  return token === undefined ? known : { ...known, Authorization: `Bearer ${token}` };
}

/** The hub answered, and not with what was asked for. */
export class Refused extends Error {
  constructor(
    readonly problem: Problem,
    readonly final: boolean,
  ) {
    super(problem.detail);
  }
}

/** What went wrong on the way to a connection, and whether trying again is of use. */
export const lossOf = (error: unknown): [problem: Problem, final: boolean] =>
  error instanceof Refused
    ? [error.problem, error.final]
    : [{ code: "disconnected", detail: String(error) }, false];

const FINAL_STATUS = new Set([400, 401, 403, 404, 413, 422]);

export async function refusal(response: Response): Promise<Refused> {
  const body = (await response.json().catch(() => ({}))) as { [field: string]: unknown };
  // What is no problem of a hub's comes from something in between, which may be gone next time.
  return new Refused(
    problemOf(response, body),
    FINAL_STATUS.has(response.status) && typeof body["code"] === "string",
  );
}

export function problemOf(response: Response, body: { [field: string]: unknown }): Problem {
  const { code, detail } = body;
  return {
    code: typeof code === "string" ? code : response.status >= 500 ? "unavailable" : "refused",
    detail: typeof detail === "string" ? detail : `the hub answered ${response.status}`,
  };
}

/** Creates the session with its input, unless it is there. */
export async function create(
  address: Address,
  fetcher: typeof fetch,
  signal: AbortSignal,
): Promise<void> {
  const headers = await headersOf(address, { "Content-Type": "application/json" });
  const response = await fetcher(sessionUrl(address.url, address.sessionId), {
    method: "PUT",
    headers,
    body: `{"input":${inputText(address)}}`,
    signal,
  });
  if (!response.ok && response.status !== 409) throw await refusal(response);
}

/** Tries in a row that failed. A connection that breaks soon after it was there is one of them. */
export class Attempts {
  #count = 0;
  #timer: ReturnType<typeof setTimeout> | undefined;

  next(): number {
    return this.#count++;
  }

  opened(): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => (this.#count = 0), STABLE_MS);
    (this.#timer as { unref?: () => void }).unref?.();
  }

  /** After a connection that had lasted, the next try is not the first either. */
  lost(): void {
    clearTimeout(this.#timer);
    if (this.#count === 0) this.#count = 1;
  }
}

const STABLE_MS = 3_000;
const TOKEN_MS = 10_000;
/** What can be a subprotocol's name (RFC 9110, section 5.6.2) as well as a bearer token (RFC 6750, section 2.1). */
const TOKEN = /^[\w.~+-]+$/;
const NO_TOKEN = "a token is letters, digits and any of - . _ ~ +";

/** A sleep that can be cut short. */
export class Nap {
  #wake: (() => void) | undefined;

  sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(() => this.#wake?.(), ms);
      this.#wake = () => {
        clearTimeout(timer);
        this.#wake = undefined;
        resolve();
      };
    });
  }

  end(): void {
    this.#wake?.();
  }
}

// What a store asks of the way to its hub, and what both ways have in common.

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
}

/** Codes after which trying again is no use. */
export const FINAL_CODES: ReadonlyMap<number, string> = new Map([[4001, "unauthorised"], [4003, "forbidden"], [4004, "no_such_machine"], [1008, "refused"]]);

/** The session's URL, http(s). Relative ones are the page's. */
export function sessionUrl(url: string, sessionId: string): string {
  return `${machineUrl(url)}/${encodeURIComponent(sessionId)}`;
}

export function machineUrl(url: string): string {
  const origin = url.startsWith("/") ? (globalThis.location?.origin ?? "") : "";
  return `${origin}${url.replace(/\/+$/, "")}`.replace(/^ws/, "http");
}

/** The query of a session's URL: who asks, and what a new session begins with. */
export function query(parts: { [name: string]: string | undefined }): string {
  return "?" + Object.entries(parts).filter((part): part is [string, string] => part[1] !== undefined).map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&");
}

export const inputText = (address: Address): string | undefined => (address.input === undefined ? undefined : JSON.stringify(address.input));

/** The token for one connection. Whatever goes wrong in a `token` function is an error of its own, and is tried again. */
export async function tokenOf(address: Address): Promise<string | undefined> {
  return typeof address.token === "function" ? await address.token() : address.token;
}

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


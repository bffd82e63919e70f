// Over WebSocket. partysocket reconnects; when, and with which URL, is decided here.

import "./events.ts";
import ReconnectingWebSocket from "partysocket/ws";
import { backoffMs } from "./backoff.ts";
import type { Outgoing } from "./outbox.ts";
import {
  type Address,
  Attempts,
  create,
  FINAL_CODES,
  type Frame,
  inputText,
  type Listener,
  lossOf,
  Nap,
  query,
  Refused,
  sessionUrl,
  tokenOf,
  type Transport,
} from "./transport.ts";
import type { Problem } from "./types.ts";

const QUIET_MS = 20_000;
const ANSWER_MS = 8_000;
/** An `error` frame explains a close that follows so soon. */
const SAID_MS = 2_000;
/** Servers and proxies take addresses of some kilobytes; a longer input goes ahead by itself. */
const INPUT_CHARS_MAX = 2_000;
const TOKEN_PROTOCOL = "machinehub.token.";
const KEY_PROTOCOL = "machinehub.key.";

/** What a network does to a connection is noticed by asking, when it was quiet for long. */
class Heartbeat {
  #timer: ReturnType<typeof setTimeout> | undefined;
  readonly #ask: () => void;
  readonly #dead: () => void;

  constructor(ask: () => void, dead: () => void) {
    this.#ask = ask;
    this.#dead = dead;
  }

  heard(): void {
    this.stop();
    this.#timer = setTimeout(() => {
      this.#ask();
      this.#timer = setTimeout(this.#dead, ANSWER_MS);
    }, QUIET_MS);
    (this.#timer as { unref?: () => void }).unref?.();
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

export function socketTransport(
  address: Address,
  listener: Listener,
  implementation?: unknown,
  fetcher?: typeof fetch,
): Transport {
  let socket: ReconnectingWebSocket | undefined;
  let said: { problem: Problem; at: number } | undefined;
  let created = false;
  let heard = false;
  const over = new AbortController();
  const nap = new Nap();
  const attempts = new Attempts();
  const heartbeat = new Heartbeat(
    () => socket?.send('{"type":"ping"}'),
    () => socket?.reconnect(4000, "no answer"),
  );
  const input = inputText(address);
  const ahead = input !== undefined && encodeURIComponent(input).length > INPUT_CHARS_MAX;

  /** Where the next connection goes, and the subprotocols that it offers: key and token are two, since a URL is written into logs. */
  const prepare = async (): Promise<{ url: string; protocols: string[] }> => {
    await nap.sleep(backoffMs(attempts.next()));
    try {
      const token = await tokenOf(address).catch((error: unknown) => {
        throw new Refused({ code: "invalid_token", detail: String(error) }, false);
      });
      if (ahead && !created) await create(address, fetcher ?? globalThis.fetch, over.signal);
      created = true;
      return {
        url:
          sessionUrl(address.url, address.sessionId).replace(/^http/i, "ws") +
          query({ input: ahead ? undefined : input }),
        protocols: [
          "machinehub.v1",
          KEY_PROTOCOL + base64url(address.key),
          ...[token, address.publishableKey]
            .filter((shown) => shown !== undefined)
            .map((shown) => TOKEN_PROTOCOL + shown),
        ],
      };
    } catch (error) {
      const [problem, final] = lossOf(error);
      listener.lost(problem, final);
      if (final) end();
      throw error instanceof Error ? error : new Error(String(error));
    }
  };

  const receive = (data: unknown): void => {
    heartbeat.heard();
    const frame = parse(data);
    if (frame === undefined) return;
    if (frame.type === "snapshot") {
      attempts.opened();
      heard = true;
    }
    said =
      frame.type === "error"
        ? {
            problem: { code: String(frame["code"]), detail: String(frame["detail"]) },
            at: Date.now(),
          }
        : said;
    try {
      listener.frame(frame);
    } catch {
      socket?.reconnect(4002, "not a frame of the protocol");
    }
  };

  /** What ends a connection for good. A token that is not valid any more may have a successor, where a function is asked for it. */
  const finalName = (code: number): string | undefined =>
    code === 4001 && typeof address.token === "function" ? undefined : FINAL_CODES.get(code);

  const closed = (code: number, reason: string): void => {
    heartbeat.stop();
    if (over.signal.aborted) return;
    attempts.lost();
    // What was there once is a session that was deleted.
    const name = code === 4004 && heard ? "no_such_session" : finalName(code);
    const why = said !== undefined && Date.now() - said.at < SAID_MS ? said.problem : undefined;
    said = undefined;
    const detail =
      reason && reason !== "unknown reason"
        ? reason
        : code <= 1001 || code === 1006 || code === 1999
          ? "there is no connection"
          : `the connection closed with ${code}`;
    const final = name !== undefined;
    const problem =
      code === 1009
        ? { code: "event_too_large", detail }
        : (why ?? { code: name ?? "disconnected", detail });
    if (final) end();
    listener.lost(problem, final);
  };

  const end = (): void => {
    over.abort();
    heartbeat.stop();
    socket?.close(1000);
    nap.end();
  };

  return {
    open() {
      // partysocket asks for both at once.
      let next: ReturnType<typeof prepare> | undefined;
      const prepared = () => (next ??= prepare().finally(() => (next = undefined)));
      const url = async (): Promise<string> => (await prepared()).url;
      const protocols = async (): Promise<string[]> => (await prepared()).protocols;
      socket = new ReconnectingWebSocket(url, protocols, {
        WebSocket: implementation,
        minReconnectionDelay: 1,
        maxReconnectionDelay: 1,
        connectionTimeout: 10_000,
        maxEnqueuedMessages: 0,
        shouldReconnectOnClose: ({ code }) => !over.signal.aborted && finalName(code) === undefined,
      });
      socket.addEventListener("open", () => heartbeat.heard()); // a hub that says nothing at all is none
      socket.addEventListener("message", (event) => receive(event.data));
      socket.addEventListener("close", (event) => closed(event.code, event.reason));
    },
    send(events: readonly Outgoing[]) {
      for (const { id, event } of events)
        socket?.send(`{"type":"event","id":${JSON.stringify(id)},"event":${event}}`);
    },
    describe(metadata) {
      socket?.send(`{"type":"presence","metadata":${metadata}}`);
    },
    hurry: () => nap.end(),
    close: end,
  };
}

function parse(data: unknown): Frame | undefined {
  try {
    const frame: unknown = JSON.parse(String(data));
    return typeof frame === "object" && frame !== null && typeof (frame as Frame).type === "string"
      ? (frame as Frame)
      : undefined;
  } catch {
    return undefined;
  }
}

function base64url(text: string): string {
  const bytes = String.fromCharCode(...new TextEncoder().encode(text));
  return btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

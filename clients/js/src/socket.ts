// Over WebSocket. partysocket reconnects; when, and with which URL, is decided here.

import "partysocket/event-target-polyfill"; // for React Native, which has neither Event nor EventTarget; elsewhere it does nothing
import ReconnectingWebSocket from "partysocket/ws";
import { backoffMs } from "./backoff.ts";
import type { Outgoing } from "./outbox.ts";
import { type Address, FINAL_CODES, type Frame, inputText, type Listener, Nap, query, sessionUrl, tokenOf, type Transport } from "./transport.ts";
import type { Problem } from "./types.ts";

const QUIET_MS = 20_000;
const ANSWER_MS = 8_000;

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

export function socketTransport(address: Address, listener: Listener, implementation?: unknown): Transport {
  let socket: ReconnectingWebSocket | undefined;
  let attempt = 0;
  let said: Problem | undefined;
  let over = false;
  const nap = new Nap();
  const heartbeat = new Heartbeat(() => socket?.send('{"type":"ping"}'), () => socket?.reconnect(4000, "no answer"));

  const nextUrl = async (): Promise<string> => {
    await nap.sleep(backoffMs(attempt++));
    const token = await tokenOf(address).catch((error: unknown) => {
      listener.lost({ code: "invalid_token", detail: String(error) }, false);
      throw error instanceof Error ? error : new Error(String(error));
    });
    return sessionUrl(address.url, address.sessionId).replace(/^http/, "ws") + query({ client: address.key, input: inputText(address), token });
  };

  const receive = (data: unknown): void => {
    heartbeat.heard();
    const frame = parse(data);
    if (frame === undefined) return;
    if (frame.type === "snapshot") {
      attempt = 0;
      said = undefined;
    } else if (frame.type === "error") {
      said = { code: String(frame["code"]), detail: String(frame["detail"]) };
    }
    listener.frame(frame);
  };

  const closed = (code: number, reason: string): void => {
    heartbeat.stop();
    const name = FINAL_CODES.get(code);
    over ||= name !== undefined;
    if (code === 4010) attempt = 0;
    else if (attempt === 0) attempt = 1; // it was open: the next try is not the first
    const problem = said ?? { code: name ?? (code === 1009 ? "event_too_large" : "disconnected"), detail: reason || `the connection closed with ${code}` };
    said = undefined;
    listener.lost(problem, over);
    if (over) socket?.close();
  };

  return {
    open() {
      socket = new ReconnectingWebSocket(nextUrl, ["machinehub.v1"], {
        WebSocket: implementation, minReconnectionDelay: 1, maxReconnectionDelay: 1, connectionTimeout: 10_000, maxEnqueuedMessages: 0,
        shouldReconnectOnClose: ({ code }) => !over && !FINAL_CODES.has(code),
      });
      socket.addEventListener("open", () => heartbeat.heard()); // a hub that says nothing at all is none
      socket.addEventListener("message", (event) => receive(event.data));
      socket.addEventListener("close", (event) => closed(event.code, event.reason));
    },
    send(events: readonly Outgoing[]) {
      for (const { id, event } of events) socket?.send(`{"type":"event","id":${JSON.stringify(id)},"event":${event}}`);
    },
    describe(metadata) {
      socket?.send(`{"type":"presence","metadata":${metadata}}`);
    },
    hurry: () => nap.end(),
    close() {
      over = true;
      heartbeat.stop();
      socket?.close(1000);
      nap.end();
    },
  };
}

function parse(data: unknown): Frame | undefined {
  try {
    const frame: unknown = JSON.parse(String(data));
    return typeof frame === "object" && frame !== null && typeof (frame as Frame).type === "string" ? (frame as Frame) : undefined;
  } catch {
    return undefined;
  }
}

// A WebSocket whose other end is the test. The hub itself is met in live.test.ts.

import { vi } from "vitest";
import { connect, type ConnectOptions, type Store } from "../src/index.ts";
import type { Frame } from "../src/transport.ts";

export class TestSocket extends EventTarget {
  static readonly OPEN = 1;
  readonly OPEN = 1;
  readonly CLOSED = 3;
  readyState = 1;
  binaryType = "";
  readonly sent: Frame[] = [];

  constructor(
    readonly url: string,
    readonly protocols: string[],
    opened: (socket: TestSocket) => void,
  ) {
    super();
    queueMicrotask(() => {
      this.dispatchEvent(new Event("open"));
      opened(this);
    });
  }

  say(frame: Frame): void {
    this.dispatchEvent(new MessageEvent("message", { data: JSON.stringify(frame) }));
  }

  send(text: string): void {
    this.sent.push(JSON.parse(text) as Frame);
  }

  hangUp(code: number, reason = ""): void {
    this.readyState = 3;
    this.dispatchEvent(Object.assign(new Event("close"), { code, reason }));
  }

  close(): void {
    this.readyState = 3;
  }
}

export const snapshot = (seq: number, context: unknown = { count: seq }): Frame => ({
  type: "snapshot",
  seq,
  version: 1,
  snapshot: { value: "active", context, status: "active", tags: [] },
  connection: { id: "me", count: 1 },
});

export function fakeHub() {
  const sockets: TestSocket[] = [];
  let wake: (() => void) | undefined;
  const opened = (socket: TestSocket): void => {
    sockets.push(socket);
    wake?.();
  };
  const next = async (number: number): Promise<TestSocket> => {
    while (sockets.length < number) await new Promise<void>((resolve) => (wake = resolve));
    return sockets[number - 1] as TestSocket;
  };
  return {
    sockets,
    next,
    async connect(
      options: Partial<ConnectOptions> = {},
    ): Promise<{ store: Store; socket: TestSocket }> {
      const WebSocket = class extends TestSocket {
        constructor(url: string, protocols: string[]) {
          super(url, protocols, opened);
        }
      };
      const store = connect({
        url: "http://hub/Wu5gAj/",
        sessionId: "a/b é",
        clientKey: "0123456789abcdef",
        WebSocket,
        ...options,
      });
      return { store, socket: await next(1) };
    },
  };
}

/** Waits until `check` no longer throws, however slow the computer is. */
export const eventually = (check: () => void): Promise<void> =>
  vi.waitFor(check, { timeout: 30_000, interval: 5 });

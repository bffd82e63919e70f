// Over server-sent events and POST, with fetch alone: for places without WebSocket, or behind proxies that do not let it pass.

import { backoffMs } from "./backoff.ts";
import { isForLater, type Outgoing } from "./outbox.ts";
import {
  type Address,
  Attempts,
  create,
  type Frame,
  headersOf,
  type Listener,
  lossOf,
  Nap,
  problemOf,
  Refused,
  refusal,
  sessionUrl,
  type Transport,
} from "./transport.ts";

/** The hub says something every 10 s, if only that it is there. */
const SILENCE_MS = 30_000;
const POST_MS = 20_000;
/** What an `error` frame says before a stream that ends for good. */
const GONE = new Set(["no_such_session", "no_such_machine"]);

export function sseTransport(
  address: Address,
  listener: Listener,
  fetcher: typeof fetch = globalThis.fetch.bind(globalThis),
): Transport {
  const url = sessionUrl(address.url, address.sessionId);
  const over = new AbortController();
  const nap = new Nap();
  const attempts = new Attempts();
  let connection: AbortController | undefined;
  let lastId = "";
  let queue: Outgoing[] = [];
  let posting: Outgoing | undefined;

  const read = async (): Promise<void> => {
    const own = new AbortController();
    connection = own;
    const signal = AbortSignal.any([over.signal, own.signal]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const alive = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => own.abort(new Error("the hub has fallen silent")), SILENCE_MS);
    };
    try {
      alive();
      const headers = await headersOf(address, {
        Accept: "text/event-stream",
        ...(lastId && { "Last-Event-ID": lastId }),
      });
      const response = await fetcher(url, { headers, signal, cache: "no-store" });
      if (!response.ok || response.body === null) throw await refusal(response);
      for await (const { id, data } of events(response.body, alive)) {
        lastId = id || lastId;
        const frame = JSON.parse(data) as Frame;
        if (frame.type === "snapshot") attempts.opened();
        if (frame.type === "error" && GONE.has(String(frame["code"])))
          throw new Refused({ code: String(frame["code"]), detail: String(frame["detail"]) }, true);
        listener.frame(frame);
      }
    } finally {
      clearTimeout(timer);
      own.abort(); // a request that was sent meanwhile may never be answered either
      if (connection === own) connection = undefined;
    }
  };

  const isOver = (): boolean => over.signal.aborted; // which may change while something is awaited

  const run = async (): Promise<void> => {
    let created = address.input === undefined;
    while (!isOver()) {
      await nap.sleep(backoffMs(attempts.next()));
      if (isOver()) return;
      try {
        if (!created) await create(address, fetcher, over.signal);
        created = true;
        await read();
        attempts.lost();
        listener.lost({ code: "disconnected", detail: "the hub ended the stream" }, false);
      } catch (error) {
        attempts.lost();
        if (isOver()) return;
        const [problem, final] = lossOf(error);
        if (final) over.abort();
        listener.lost(problem, final);
      }
    }
  };

  const answered = (id: string, body: { [field: string]: unknown }, error: unknown): void =>
    listener.frame({
      type: "ack",
      id,
      seq: body["seq"] ?? 0,
      changed: body["changed"],
      taken: body["taken"],
      outcome: error === undefined ? "accepted" : "rejected",
      error,
    });

  /** One after the other, since that is the order of a client's events. What comes behind one that failed waits with it: the store sends all of them again. */
  const post = async (next: Outgoing): Promise<void> => {
    const signal = AbortSignal.any([
      over.signal,
      AbortSignal.timeout(POST_MS),
      ...(connection ? [connection.signal] : []),
    ]);
    try {
      const headers = await headersOf(address, {
        "Content-Type": "application/json",
        "Idempotency-Key": next.id,
      });
      const response = await fetcher(url, {
        method: "POST",
        headers,
        body: next.event,
        signal,
      });
      const body = (await response.json().catch(() => ({}))) as { [field: string]: unknown };
      const error = response.ok ? undefined : problemOf(response, body);
      if (isForLater(error)) queue = [];
      if (response.ok)
        listener.frame({
          type: "update",
          seq: Number(/\d+/.exec(response.headers.get("ETag") ?? "")?.[0] ?? body["seq"]),
          snapshot: body["snapshot"],
        });
      answered(next.id, body, error);
    } catch (error) {
      queue = [];
      if (!over.signal.aborted)
        answered(
          next.id,
          {},
          {
            code: "unavailable",
            detail: `the hub was not reached: ${String(error)}`,
          },
        );
    }
  };
  const work = async (): Promise<void> => {
    for (
      posting = queue.shift();
      posting !== undefined && !over.signal.aborted;
      posting = queue.shift()
    )
      await post(posting);
    posting = undefined;
  };

  return {
    open: () => void run(),
    send(events) {
      const known = new Set([...queue, ...(posting ? [posting] : [])]);
      queue = [...queue, ...events.filter((event) => !known.has(event))].sort(
        (one, other) => one.number - other.number,
      );
      if (posting === undefined) void work();
    },
    describe(metadata) {
      headersOf(address, { "Content-Type": "application/json" })
        .then((headers) =>
          fetcher(`${url}/presence`, {
            method: "PUT",
            headers,
            body: `{"metadata":${metadata}}`,
            signal: over.signal,
          }),
        )
        .catch(() => undefined); // the next connection says it again
    },
    hurry: () => nap.end(),
    close() {
      over.abort();
      nap.end();
    },
  };
}

/** The events of a stream (WHATWG HTML, section 9.2): lines, `data:` and `id:`, ended by an empty one. */
async function* events(
  body: ReadableStream<Uint8Array>,
  alive: () => void,
): AsyncGenerator<{ id: string; data: string }> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let id = "";
  let data: string[] = [];
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      const lines: string[] = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() as string;
      for (const line of lines.map((text) => text.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line.startsWith("id:")) id = line.slice(3).trim();
        else if (line === "" && data.length) {
          const text = data.join("\n");
          data = [];
          if (text) yield { id, data: text };
        }
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

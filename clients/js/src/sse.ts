// Over server-sent events and POST, with fetch alone: for places without WebSocket, or behind proxies that do not let it pass.

import { backoffMs } from "./backoff.ts";
import { isForLater, type Outgoing } from "./outbox.ts";
import { type Address, type Frame, inputText, type Listener, Nap, query, sessionUrl, tokenOf, type Transport } from "./transport.ts";
import type { Problem } from "./types.ts";

const FINAL_STATUS = new Set([400, 401, 403, 404]);
/** The hub says something every 10 s, if only that it is there. */
const SILENCE_MS = 30_000;

class Refused extends Error {
  constructor(readonly problem: Problem, readonly final: boolean) {
    super(problem.detail);
  }
}

export function sseTransport(address: Address, listener: Listener, fetcher: typeof fetch = globalThis.fetch.bind(globalThis)): Transport {
  const url = sessionUrl(address.url, address.sessionId);
  const who = query({ client: address.key });
  const over = new AbortController();
  const nap = new Nap();
  let connection: AbortController | undefined;
  let lastId = "";
  let queue: Outgoing[] = [];
  let posting = false;

  const headers = async (more: { [name: string]: string }): Promise<{ [name: string]: string }> => {
    const token = await tokenOf(address);
    return token === undefined ? more : { ...more, Authorization: `Bearer ${token}` };
  };

  const create = async (): Promise<void> => {
    const input = inputText(address);
    if (input === undefined) return;
    const response = await fetcher(url, { method: "PUT", headers: await headers({ "Content-Type": "application/json" }), body: `{"input":${input}}`, signal: over.signal });
    if (!response.ok && response.status !== 409) throw await refusal(response);
  };

  const read = async (heard: () => void): Promise<void> => {
    const silence = new AbortController();
    connection = silence;
    const signal = AbortSignal.any([over.signal, silence.signal]);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const alive = (): void => {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(new Error("the hub has fallen silent")), SILENCE_MS);
    };
    try {
      alive();
      const response = await fetcher(url + who, { headers: await headers({ Accept: "text/event-stream", ...(lastId && { "Last-Event-ID": lastId }) }), signal, cache: "no-store" });
      if (!response.ok || response.body === null) throw await refusal(response);
      for await (const { id, data } of events(response.body, alive)) {
        lastId = id || lastId;
        const frame = JSON.parse(data) as Frame;
        if (frame.type === "snapshot") heard();
        listener.frame(frame);
      }
    } finally {
      clearTimeout(timer);
      if (connection === silence) connection = undefined;
    }
  };

  const run = async (): Promise<void> => {
    let created = false;
    for (let attempt = 0; !over.signal.aborted; attempt++) {
      await nap.sleep(backoffMs(attempt));
      if (over.signal.aborted) return;
      try {
        if (!created) await create();
        created = true;
        await read(() => (attempt = 0));
        listener.lost({ code: "disconnected", detail: "the hub ended the stream" }, false);
      } catch (error) {
        if (over.signal.aborted) return;
        const final = error instanceof Refused && error.final;
        if (final) over.abort();
        listener.lost(error instanceof Refused ? error.problem : { code: "disconnected", detail: String(error) }, final);
      }
    }
  };

  /** One after the other, since that is the order of a client's events. */
  const post = async (): Promise<void> => {
    posting = true;
    for (let next = queue.shift(); next !== undefined && !over.signal.aborted; next = queue.shift()) {
      try {
        const response = await fetcher(url + who, { method: "POST", headers: await headers({ "Content-Type": "application/json", "Idempotency-Key": next.id }), body: next.event, signal: over.signal });
        const body = (await response.json().catch(() => ({}))) as { [field: string]: unknown };
        const error = response.ok ? undefined : problemOf(response, body);
        if (isForLater(error)) queue = []; // what comes behind it waits with it: the store sends all of them again, in order
        if (response.ok) listener.frame({ type: "update", seq: Number(/\d+/.exec(response.headers.get("ETag") ?? "")?.[0] ?? body["seq"]), snapshot: body["snapshot"] });
        listener.frame({ type: "ack", id: next.id, seq: body["seq"] ?? 0, outcome: error === undefined ? "accepted" : "rejected", error });
      } catch {
        queue = [];
        if (!over.signal.aborted) listener.frame({ type: "ack", id: next.id, seq: 0, outcome: "rejected", error: { code: "unavailable", detail: "the hub cannot be reached" } });
      }
    }
    posting = false;
  };

  return {
    open: () => void run(),
    send(events) {
      const known = new Set(queue);
      queue = [...queue, ...events.filter((event) => !known.has(event))];
      if (!posting) void post();
    },
    describe(metadata) {
      headers({ "Content-Type": "application/json" })
        .then((all) => fetcher(`${url}/presence${who}`, { method: "PUT", headers: all, body: `{"metadata":${metadata}}`, signal: over.signal }))
        .catch(() => undefined); // the next connection says it again
    },
    hurry: () => nap.end(),
    close() {
      over.abort();
      connection?.abort();
      nap.end();
    },
  };
}

function problemOf(response: Response, body: { [field: string]: unknown }): Problem {
  return { code: String(body["code"] ?? (response.status >= 500 ? "unavailable" : "refused")), detail: String(body["detail"] ?? `the hub answered ${response.status}`) };
}

async function refusal(response: Response): Promise<Refused> {
  const body = (await response.json().catch(() => ({}))) as { [field: string]: unknown };
  return new Refused(problemOf(response, body), FINAL_STATUS.has(response.status));
}

/** The events of a stream (WHATWG HTML, section 9.2): lines, `data:` and `id:`, ended by an empty one. */
async function* events(body: ReadableStream<Uint8Array>, alive: () => void): AsyncGenerator<{ id: string; data: string }> {
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
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop() as string;
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        else if (line.startsWith("id:")) id = line.slice(3).trim();
        else if (line === "" && data.length) {
          yield { id, data: data.join("\n") };
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}

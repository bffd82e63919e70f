// The SSE transport against servers that misbehave: what proxies and networks do to a stream.

import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, test } from "vitest";
import { connect, type ConnectOptions, type Store } from "../src/index.ts";
import { eventually, snapshot } from "./hub.ts";

const closing: (() => void)[] = [];
afterEach(() => closing.splice(0).forEach((close) => close()));

interface Handlers {
  stream?: (response: ServerResponse) => void;
  post?: (event: { type: string; n: number }, response: ServerResponse) => void;
  other?: (request: IncomingMessage, response: ServerResponse) => void;
}

async function against(
  { stream, post, other }: Handlers,
  options: Partial<ConnectOptions> = {},
): Promise<Store> {
  const answer = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    if (request.method === "GET") {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      (stream ?? greet)(response);
      return;
    }
    if (request.method !== "POST") {
      other?.(request, response);
      return;
    }
    let body = "";
    for await (const chunk of request) body += String(chunk);
    post?.(JSON.parse(body) as { type: string; n: number }, response);
  };
  const server = createServer((request, response) => void answer(request, response));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const store = connect({
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/Wu5gAj`,
    sessionId: "s",
    transport: "sse",
    clientKey: "0123456789abcdef",
    ...options,
  });
  closing.push(
    () => store.close(),
    () => server.closeAllConnections(),
    () => server.close(),
  );
  return store;
}

const greet = (response: ServerResponse): void =>
  void response.write(`data: ${JSON.stringify(snapshot(1))}\n\n`);
const accept = (response: ServerResponse, seq = 2): void =>
  void response.end(
    JSON.stringify({
      seq,
      outcome: "accepted",
      changed: true,
      snapshot: { value: "a", context: {}, status: "active" },
    }),
  );

test("lines may end as they like, and come in pieces", async () => {
  const store = await against({
    stream: (response) => {
      for (const byte of Buffer.from(
        `: hello\r\nretry: 1\r\n\r\ndata:\r\n\r\nid: 1\r\ndata: ${JSON.stringify(snapshot(1, { text: "é😀" }))}\r\n\r\n`,
      ))
        response.write(Buffer.from([byte]));
    },
  });
  expect((await store.waitFor(() => true)).context).toEqual({ text: "é😀" });
});

test("one failure does not change the order of what follows", async () => {
  const applied: number[] = [];
  let failed = false;
  const store = await against({
    post: ({ n }, response) => {
      if (n === 2 && !failed) {
        failed = true;
        return void response.writeHead(503).end('{"code":"unavailable","detail":"not now"}');
      }
      applied.push(n);
      accept(response);
    },
  });
  await store.waitFor(() => true);
  expect(
    (await Promise.all([1, 2, 3, 4, 5].map((n) => store.send({ type: "a", n })))).every(
      (ack) => ack.outcome === "accepted",
    ),
  ).toBe(true);
  expect(applied).toEqual([1, 2, 3, 4, 5]);
});

test("a request that is never answered goes again with the next connection", async () => {
  const streams: ServerResponse[] = [];
  let posts = 0;
  const store = await against({
    stream: (response) => {
      streams.push(response);
      greet(response);
    },
    post: (_, response) => {
      if (++posts > 1) accept(response);
    },
  });
  await store.waitFor(() => true);
  const ack = store.send({ type: "a", n: 1 });
  await eventually(() => expect(posts).toBe(1));
  streams[0]?.destroy();
  expect((await ack).outcome).toBe("accepted");
  expect(posts).toBe(2);
});

test("a session that is deleted is not made anew", async () => {
  let streams = 0;
  const store = await against({
    stream: (response) => {
      streams++;
      greet(response);
      response.end(
        'data: {"type":"error","code":"no_such_session","detail":"the session was deleted"}\n\n',
      );
    },
  });
  await eventually(() => expect(store.status).toBe("closed"));
  expect([store.error?.code, streams]).toEqual(["no_such_session", 1]);
});

test("input that is refused is the end, a proxy's error page is not", async () => {
  const refused = await against(
    {
      other: (_, response) =>
        void response
          .writeHead(413, { "Content-Type": "application/json" })
          .end('{"code":"input_too_large","detail":"too large"}'),
    },
    { input: { a: 1 } },
  );
  await eventually(() =>
    expect([refused.status, refused.error?.code]).toEqual(["closed", "input_too_large"]),
  );
  let tries = 0;
  const proxied = await against(
    {
      other: (_, response) => {
        if (++tries < 2) response.writeHead(404).end("<h1>nginx</h1>");
        else response.writeHead(409).end("{}");
      },
    },
    { input: { a: 1 } },
  );
  await proxied.waitFor(() => true);
  expect(tries).toBe(2);
});

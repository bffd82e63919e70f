// What the store decides when connections break, hubs refuse, and events wait.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { backoffMs } from "../src/backoff.ts";
import { Outbox, TRIES_MAX, WINDOW } from "../src/outbox.ts";
import { State } from "../src/state.ts";
import { connect } from "../src/index.ts";
import { eventually, fakeHub, snapshot, TestSocket } from "./hub.ts";

beforeEach(() => void vi.spyOn(Math, "random").mockReturnValue(0.01)); // short waits
afterEach(() => void vi.restoreAllMocks());

test("the address says who asks, for what, with what", async () => {
  const token = vi.fn(() => Promise.resolve("t.k"));
  const { socket } = await fakeHub().connect({ input: { n: 1 }, token });
  expect(socket.url).toBe("ws://hub/Wu5gAj/a%2Fb%20%C3%A9?input=%7B%22n%22%3A1%7D");
  expect(socket.protocols).toEqual([
    "machinehub.v1",
    "machinehub.key.MDEyMzQ1Njc4OWFiY2RlZg",
    "machinehub.token.t.k",
  ]);
  expect(token).toHaveBeenCalledTimes(1);
});

test("a publishable key goes beside the token", async () => {
  const { socket } = await fakeHub().connect({ token: "t", publishableKey: "mhp_k" });
  expect(socket.protocols.slice(2)).toEqual(["machinehub.token.t", "machinehub.token.mhp_k"]);
});

test("what a view shows may be anything", () => {
  const state = new State(null, 1, 1, () => undefined);
  expect([state.snapshot, state.status, state.context, state.tags]).toEqual([
    null,
    "active",
    undefined,
    [],
  ]);
  expect(state.matches("a")).toBe(false);
  const shown = { hand: [1] };
  expect(new State(shown as never, 1, 1, () => undefined).again().snapshot).toBe(shown);
});

test("what is not acknowledged is sent again, in order, with the same ids", async () => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  const early = store.send({ type: "early" });
  expect(socket.sent).toEqual([]);
  socket.say(snapshot(1));
  void store.send({ type: "late" });
  expect(socket.sent.map((frame) => (frame.event as { type: string }).type)).toEqual([
    "early",
    "late",
  ]);
  socket.say({ type: "ack", id: socket.sent[0]?.id, seq: 2, outcome: "accepted" });
  expect((await early).outcome).toBe("accepted");
  const statuses: string[] = [];
  store.subscribe(() => statuses.push(store.status));
  socket.hangUp(1006);
  expect(store.status).toBe("reconnecting");
  expect(store.error?.code).toBe("disconnected");
  void store.send({ type: "offline" });
  const second = await hub.next(2);
  second.say(snapshot(2));
  expect(second.sent.map((frame) => (frame.event as { type: string }).type)).toEqual([
    "late",
    "offline",
  ]);
  expect(second.sent[0]?.id).toBe(socket.sent[1]?.id);
  expect(statuses).toEqual(["reconnecting", "open"]);
  expect(store.error).toBeNull();
  store.close();
});

test("a token that has ended has a successor", async () => {
  let count = 0;
  const token = vi.fn(() => Promise.resolve(`t.${++count}`));
  const hub = fakeHub();
  const { store, socket } = await hub.connect({ token });
  socket.say(snapshot(1));
  const waiting = store.send({ type: "a" });
  socket.hangUp(4001, "the token is not valid any more");
  expect(store.status).not.toBe("closed");
  await eventually(() => expect(hub.sockets.length).toBe(2));
  const again = hub.sockets[1] as TestSocket;
  expect(again.protocols).toContain("machinehub.token.t.2");
  again.say(snapshot(1));
  again.say({ type: "ack", id: again.sent[0]?.id, seq: 2, outcome: "accepted" });
  expect((await waiting).outcome).toBe("accepted");
});

test.each([
  [4001, "unauthorised"],
  [4003, "forbidden"],
  [4004, "no_such_session"],
])("%i is the end", async (code, name) => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  socket.say(snapshot(1));
  const waiting = store.send({ type: "a" });
  const never = store.waitFor(() => false);
  socket.hangUp(code, "because");
  expect([store.status, store.error]).toEqual(["closed", { code: name, detail: "because" }]);
  expect(await waiting).toMatchObject({ outcome: "rejected", error: { code: name } });
  expect(await store.send({ type: "b" })).toMatchObject({
    outcome: "rejected",
    error: { code: "closed" },
  });
  await expect(never).rejects.toThrow(name);
  await new Promise((resolve) => setTimeout(resolve, 50));
  expect(hub.sockets.length).toBe(1);
});

test("an error before the end says why", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say({ type: "error", code: "no_such_machine", detail: "there is no machine" });
  socket.hangUp(4004, "there is no machine");
  expect(store.error).toEqual({ code: "no_such_machine", detail: "there is no machine" });
});

test("unavailable is tried again, and holds back what comes after", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(snapshot(1));
  const ack = store.send({ type: "a" });
  socket.say({
    type: "ack",
    id: socket.sent[0]?.id,
    seq: 1,
    outcome: "rejected",
    error: { code: "unavailable", detail: "" },
  });
  void store.send({ type: "b" });
  expect(socket.sent.length).toBe(1);
  await eventually(() => expect(socket.sent.length).toBe(3));
  expect(socket.sent[1]?.id).toBe(socket.sent[0]?.id);
  socket.say({ type: "ack", id: socket.sent[0]?.id, seq: 2, outcome: "accepted" });
  expect((await ack).outcome).toBe("accepted");
  store.close();
});

test("a frame that is too large is refused, and the others go on", async () => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  socket.say(snapshot(1));
  const small = store.send({ type: "small" });
  const large = store.send({ type: "large", text: "x".repeat(100) });
  socket.hangUp(1009);
  expect(await large).toMatchObject({ outcome: "rejected", error: { code: "event_too_large" } });
  const second = await hub.next(2);
  second.say(snapshot(1));
  expect(second.sent.length).toBe(1);
  second.say({ type: "ack", id: second.sent[0]?.id, seq: 2, outcome: "accepted" });
  expect((await small).outcome).toBe("accepted");
  store.close();
});

test("the buffer is bounded, and what is no event is refused", async () => {
  const { store } = await fakeHub().connect({ eventBufferMax: 2 });
  const cyclic: { type: string; self?: unknown } = { type: "a" };
  cyclic.self = cyclic;
  expect(await store.send(cyclic)).toMatchObject({ error: { code: "invalid_event" } });
  expect(await store.send({} as never)).toMatchObject({ error: { code: "invalid_event" } });
  expect(await store.send(undefined as never)).toMatchObject({ error: { code: "invalid_event" } });
  const waiting = [store.send({ type: "a" }), store.send({ type: "b" })];
  expect(await store.send({ type: "c" })).toMatchObject({ error: { code: "buffer_full" } });
  store.close();
  expect((await Promise.all(waiting)).map((ack) => ack.outcome)).toEqual(["rejected", "rejected"]);
});

test("a listener that throws keeps nothing from the others", async () => {
  const { store, socket } = await fakeHub().connect();
  const reported = vi.spyOn(globalThis, "queueMicrotask").mockImplementation(() => undefined);
  const heard = vi.fn();
  store.subscribe(() => {
    throw new Error("mine");
  });
  const stop = store.subscribe(heard);
  socket.say(snapshot(1));
  stop();
  socket.say({ type: "update", seq: 2, snapshot: { value: "b", context: {}, status: "active" } });
  expect(heard).toHaveBeenCalledTimes(1);
  expect(reported).toHaveBeenCalledTimes(2);
  store.close();
});

test("what is older than what is known is not shown", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(snapshot(5));
  const known = store.getSnapshot();
  socket.say({ type: "update", seq: 4, snapshot: { value: "old", context: {}, status: "active" } });
  expect(store.getSnapshot()).toBe(known);
  socket.dispatchEvent(new MessageEvent("message", { data: "{" }));
  socket.dispatchEvent(new MessageEvent("message", { data: "null" }));
  expect(store.status).toBe("open");
  store.close();
});

test("waitFor resolves, and can be given up", async () => {
  const { store, socket } = await fakeHub().connect();
  const two = store.waitFor((state) => (state.context as { count: number }).count === 2);
  const given = store.waitFor(() => false, { signal: AbortSignal.timeout(20) });
  socket.say(snapshot(1));
  socket.say({
    type: "update",
    seq: 2,
    snapshot: { value: "active", context: { count: 2 }, status: "active" },
  });
  expect((await two).seq).toBe(2);
  await expect(given).rejects.toThrow();
  await expect(
    store.waitFor(() => {
      throw new Error("mine");
    }),
  ).rejects.toThrow("mine");
  store.close();
});

test("metadata is said again on each connection", async () => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  store.setMetadata({ name: "Ann" });
  socket.say(snapshot(1));
  socket.hangUp(1006);
  const second = await hub.next(2);
  second.say(snapshot(1));
  expect([...socket.sent, ...second.sent]).toEqual([
    { type: "presence", metadata: { name: "Ann" } },
    { type: "presence", metadata: { name: "Ann" } },
  ]);
  store.close();
});

test("a token that cannot be had is tried again", async () => {
  let tries = 0;
  const hub = fakeHub();
  const { store, socket } = await hub.connect({
    token: () => (++tries < 3 ? Promise.reject(new Error("not now")) : "t"),
  });
  expect(tries).toBe(3);
  socket.say(snapshot(1));
  expect(store.status).toBe("open");
  store.close();
});

test("a token that cannot be sent is refused at once", async () => {
  const store = connect({ url: "http://hub/Wu5gAj", sessionId: "s", token: "two words" });
  expect([store.status, store.error?.code]).toEqual(["closed", "invalid_token"]);
  expect((await store.send({ type: "a" })).outcome).toBe("rejected");
});

test("waits grow, and are spread over their whole length", () => {
  expect(backoffMs(0)).toBe(0);
  expect([1, 2, 3, 9].map((attempt) => backoffMs(attempt, () => 1))).toEqual([
    500, 1000, 2000, 8000,
  ]);
  expect(backoffMs(3, () => 0)).toBe(0);
});

test("an event that the hub never takes is given up", () => {
  const outbox = new Outbox("p", 10);
  const ack = outbox.add({ type: "a" });
  const refusal = { code: "unavailable", detail: "" };
  for (let n = 1; n < TRIES_MAX; n++) expect(outbox.answered("p-1", 0, refusal)).toBeGreaterThan(0);
  expect(outbox.answered("p-1", 0, refusal)).toBe(0);
  return expect(ack).resolves.toMatchObject({ outcome: "rejected", error: refusal });
});

test("only so many are on their way at once, and in order", () => {
  const outbox = new Outbox("p", 1000);
  for (let n = 1; n <= WINDOW + 3; n++) void outbox.add({ type: String(n) });
  expect(outbox.due().map(({ id }) => id)).toEqual(
    Array.from({ length: WINDOW }, (_, n) => `p-${n + 1}`),
  );
  expect(outbox.due()).toEqual([]);
  outbox.answered("p-2", 1);
  expect(outbox.due().map(({ id }) => id)).toEqual([`p-${WINDOW + 1}`]);
  outbox.again();
  expect(outbox.due()[0]?.id).toBe("p-1");
});

test("states answer what XState's answer", () => {
  const root = {
    id: "m",
    key: "m",
    type: "compound",
    states: {
      a: {
        id: "m.a",
        key: "a",
        type: "parallel",
        transitions: [
          { event: "OUT", kind: "event" },
          { event: "x.*", kind: "event" },
          { event: "", kind: "always" },
        ],
        states: {
          b: {
            id: "m.a.b",
            key: "b",
            type: "compound",
            states: {
              c: {
                id: "m.a.b.c",
                key: "c",
                type: "atomic",
                transitions: [{ event: "GO", kind: "event" }],
              },
            },
          },
          d: { id: "m.a.d", key: "d", type: "atomic" },
        },
      },
      z: { id: "m.z", key: "z", type: "final" },
    },
  } as const;
  const definition = { id: "m", events: [], root } as never;
  const state = new State(
    { value: { a: { b: "c", d: {} } }, context: 1, status: "active", tags: ["t"] },
    1,
    1,
    () => definition,
  );
  for (const yes of ["a", { a: "b" }, { a: { b: "c" } }, { a: { d: {} } }, {}])
    expect(state.matches(yes as never), JSON.stringify(yes)).toBe(true);
  for (const no of [
    "b",
    "z",
    { a: "c" },
    { z: {} },
    { a: { b: "d" } },
    "toString",
    { toString: {} },
  ])
    expect(state.matches(no as never), JSON.stringify(no)).toBe(false);
  expect([state.hasTag("t"), state.hasTag("u")]).toEqual([true, false]);
  expect(
    ["GO", "OUT", "x", "x.y", "", "y", "presence.joined"].map((type) => state.can(type)),
  ).toEqual([true, true, true, true, false, false, false]);
  expect(state.nextEvents).toEqual(["GO", "OUT"]);
});

test("what cannot be sent is refused at once, and nothing else with it", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(snapshot(1));
  expect(() => store.setMetadata("x".repeat(5000))).toThrow(RangeError);
  for (const [event, code] of [
    [{ type: "a", v: "\ud83d" }, "invalid_event"],
    [{ type: "a", v: "\\\\\udc00" }, "invalid_event"],
    [{ type: "a", v: "語".repeat(30_000) }, "event_too_large"],
    [{ type: "a", v: 1n }, "invalid_event"],
  ] as const) {
    expect(await store.send(event)).toMatchObject({ outcome: "rejected", error: { code } });
  }
  void store.send({ type: "a", v: "\\ud83d", w: "😀" });
  expect(socket.sent.length).toBe(1);
  store.close();
});

test.each([
  ["counter", "s", "invalid_url"],
  ["/x", "s", "invalid_url"],
  ["127.0.0.1:1/x", "s", "invalid_url"],
  [undefined, "s", "invalid_url"],
  ["http://h/m", "..", "invalid_session_id"],
  ["http://h/m", "\ud800", "invalid_session_id"],
  ["http://h/m", "", "invalid_session_id"],
])("no session is at %j, %j", async (url, sessionId, code) => {
  for (const transport of ["websocket", "sse"] as const) {
    const store = connect({
      url: url as string,
      sessionId,
      transport,
      clientKey: "0123456789abcdef",
      WebSocket: TestSocket,
    });
    expect([store.status, store.error?.code]).toEqual(["closed", code]);
    expect((await store.send({ type: "a" })).outcome).toBe("rejected");
    store.close();
  }
});

test("frames that are none drop the connection, and nothing else", async () => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  socket.say(snapshot(1));
  socket.say({ type: "snapshot", seq: 2 });
  (await hub.next(2)).say(snapshot(3));
  expect([store.status, store.getSnapshot().seq]).toEqual(["open", 3]);
  (await hub.next(2)).say({ type: "presence", joined: 5 });
  (await hub.next(3)).say({ type: "emitted", event: null });
  await hub.next(4);
  store.close();
});

test("connections that break soon are tried less and less often", async () => {
  vi.spyOn(Math, "random").mockReturnValue(0.9);
  const waits: number[] = [];
  const original = globalThis.setTimeout;
  vi.spyOn(globalThis, "setTimeout").mockImplementation(((run: () => void, ms: number) => {
    if ([450, 900, 1800, 3600].includes(ms)) waits.push(ms);
    return original(run, ms > 400 && ms < 7000 ? 1 : ms);
  }) as never);
  const hub = fakeHub();
  const { store } = await hub.connect();
  for (let n = 1; n <= 4; n++) {
    const socket = await hub.next(n);
    socket.say({ type: "error", code: "x", detail: "y" });
    socket.hangUp(1006);
  }
  await hub.next(5);
  expect(waits).toEqual([450, 900, 1800, 3600]);
  store.close();
});

test("a listener may leave and come back while it is called, and listen twice", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(snapshot(1));
  let calls = 0;
  const listener = (): void => {
    calls++;
    off();
    off = store.on("said", listener);
  };
  let off = store.on("said", listener);
  const other = vi.fn();
  const first = store.on("*", other);
  store.on("*", other);
  socket.say({ type: "emitted", seq: 1, event: { type: "said" } });
  expect([calls, other.mock.calls.length]).toEqual([1, 2]);
  first();
  socket.say({ type: "emitted", seq: 1, event: { type: "said" } });
  expect(other.mock.calls.length).toBe(3);
  store.close();
});

test("close says closed, once", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(snapshot(1));
  const told = vi.fn();
  store.subscribe(told);
  const waiting = store.send({ type: "a" });
  store.close();
  expect(await waiting).toMatchObject({ error: { code: "closed" } });
  expect(told).toHaveBeenCalledTimes(1);
});

test("where there is no WebSocket, asking for it says so", async () => {
  vi.stubGlobal("WebSocket", undefined);
  const store = connect({ url: "http://hub/Wu5gAj", sessionId: "s", transport: "websocket" });
  expect([store.status, store.error?.code]).toEqual(["closed", "no_websocket"]);
  expect(await store.send({ type: "a" })).toMatchObject({ outcome: "rejected" });
  vi.unstubAllGlobals();
});

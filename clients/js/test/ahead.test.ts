// Running ahead of the hub, and events that outlive the page.

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { assign, fromPromise, setup } from "xstate";
import { ahead } from "../src/optimistic.ts";
import { Outbox } from "../src/outbox.ts";
import { type EventStorage, Queue } from "../src/queue.ts";
import type { Frame } from "../src/transport.ts";
import { eventually, fakeHub, snapshot } from "./hub.ts";

beforeEach(() => void vi.spyOn(Math, "random").mockReturnValue(0.01));
afterEach(() => void vi.restoreAllMocks());

type CounterEvent =
  | { type: "add"; by?: number; sender?: { id: string } }
  | { type: "ask" }
  | { type: "boom" }
  | { type: "end" };
const effects: string[] = [];
const counter = setup({
  types: { context: {} as { count: number; by: string | null }, events: {} as CounterEvent },
  actors: { answer: fromPromise(() => Promise.resolve(1)) },
  actions: { effect: () => void effects.push("ran") },
}).createMachine({
  id: "counter",
  context: { count: 0, by: null },
  initial: "active",
  states: {
    active: {
      on: {
        add: {
          guard: ({ event }) => (event.by ?? 1) < 100,
          actions: [
            assign({
              count: ({ context, event }) => context.count + (event.by ?? 1),
              by: ({ event }) => event.sender?.id ?? null,
            }),
            "effect",
          ],
        },
        ask: "asking",
        boom: {
          actions: () => {
            throw new Error("boom");
          },
        },
        end: "over",
      },
    },
    asking: { invoke: { src: "answer", onDone: "active" } },
    over: { type: "final" },
  },
});

const at = (seq: number, count: number, by: string | null = null): Frame =>
  snapshot(seq, { count, by });
const update = (seq: number, count: number, by: string | null = "me"): Frame => ({
  type: "update",
  seq,
  snapshot: { value: "active", context: { count, by }, status: "active", tags: [] },
});
const ack = (id: unknown, seq: number, changed = true): Frame => ({
  type: "ack",
  id,
  seq,
  outcome: "accepted",
  changed,
  taken: true,
});

async function aheadOf(first: Frame) {
  const hub = fakeHub();
  const { store, socket } = await hub.connect({ optimistic: counter });
  const seen: number[] = [];
  store.subscribe((state) => seen.push((state.context as { count: number }).count));
  socket.say(first);
  const count = () => (store.getSnapshot().context as { count: number }).count;
  return { hub, store, socket, seen, count };
}

test("an event shows at once, and counts once when the hub has it", async () => {
  const { store, socket, seen, count } = await aheadOf(at(1, 10));
  void store.send({ type: "add", by: 5 });
  expect([count(), store.getSnapshot().pending, store.getSnapshot().seq]).toEqual([15, 1, 1]);
  expect((store.getSnapshot().context as { by: string }).by).toBe("me");
  expect(effects).toEqual([]);
  socket.say(update(2, 15));
  socket.say(ack(socket.sent[0]?.id, 2));
  expect([count(), store.getSnapshot().pending, store.getSnapshot().seq]).toEqual([15, 0, 2]);
  expect(seen).toEqual([10, 15, 15]);
});

test("others' events come in between, and nothing is shown twice", async () => {
  const { store, socket, seen, count } = await aheadOf(at(1, 0));
  void store.send({ type: "add" });
  void store.send({ type: "add" });
  expect(count()).toBe(2);
  socket.say(update(2, 10, "other")); // somebody else's, before ours
  socket.say(update(3, 11));
  socket.say(ack(socket.sent[0]?.id, 3));
  expect([count(), store.getSnapshot().pending]).toEqual([12, 1]);
  socket.say(update(4, 12));
  socket.say(ack(socket.sent[1]?.id, 4));
  expect([count(), store.getSnapshot().pending]).toEqual([12, 0]);
  expect(Math.max(...seen)).toBe(12);
  store.close();
});

test("an answer without an update is believed, too", async () => {
  const { store, socket, count } = await aheadOf(at(1, 0));
  void store.send({ type: "add" });
  socket.say(ack(socket.sent[0]?.id, 2)); // the update was left out, since a newer one comes
  expect([count(), store.getSnapshot().pending]).toEqual([1, 1]);
  socket.say(update(5, 41, "other"));
  await eventually(() => expect([count(), store.getSnapshot().pending]).toEqual([41, 0]));
  void store.send({ type: "add" });
  socket.say(ack(socket.sent[1]?.id, 6, false)); // the hub's machine did nothing
  expect([count(), store.getSnapshot().pending]).toEqual([41, 0]);
  store.close();
});

test("what the hub rejects is gone again", async () => {
  const { store, socket, count } = await aheadOf(at(1, 0));
  const sent = store.send({ type: "add" });
  void store.send({ type: "add" });
  expect(count()).toBe(2);
  socket.say({
    type: "ack",
    id: socket.sent[0]?.id,
    seq: 1,
    outcome: "rejected",
    error: { code: "machine_error", detail: "no" },
  });
  expect((await sent).outcome).toBe("rejected");
  expect([count(), store.getSnapshot().pending]).toEqual([1, 1]);
  store.close();
});

test("events that wait while there is no connection show as well", async () => {
  const { hub, store, socket, count } = await aheadOf(at(1, 0));
  void store.send({ type: "add" });
  socket.hangUp(1006);
  void store.send({ type: "add" });
  expect(count()).toBe(2);
  const second = await hub.next(2);
  second.say(at(2, 1, "me")); // the first had arrived, which is not known yet
  expect([store.status, count()]).toEqual(["open", 2]);
  expect(second.sent.length).toBe(2);
  second.say(ack(second.sent[0]?.id, 2)); // as it was answered then
  expect([count(), store.getSnapshot().pending]).toEqual([2, 1]);
  second.say(update(3, 2));
  second.say(ack(second.sent[1]?.id, 3));
  expect([count(), store.getSnapshot().pending]).toEqual([2, 0]);
  store.close();
  expect(count()).toBe(2);
});

test("what a hub that came back does not answer in time is counted on", async () => {
  const { hub, store, socket, count } = await aheadOf(at(1, 0));
  void store.send({ type: "add" });
  socket.hangUp(1006);
  const second = await hub.next(2);
  second.say(at(2, 5));
  expect(count()).toBe(1);
  await eventually(() => expect([count(), store.getSnapshot().pending]).toEqual([6, 1]));
  store.close();
});

test("what cannot be foreseen is waited for", () => {
  const truth = { value: "active", context: { count: 1, by: null }, status: "active", tags: [] };
  const run = (...events: object[]) =>
    ahead(
      counter,
      truth,
      events.map((event) => JSON.stringify(event)),
      undefined,
    );
  expect(run({ type: "boom" }).context).toEqual({ count: 1, by: null });
  expect(run({ type: "add" }, { type: "boom" }).context).toMatchObject({ count: 2 });
  expect(run({ type: "add", by: 100 })).toMatchObject({ context: { count: 1 } });
  expect(run({ type: "nothing" })).toMatchObject(truth);
  expect(run({ type: "end" }, { type: "add" })).toMatchObject({ value: "over", status: "done" });
  expect(["active", "asking"]).toContain(run({ type: "ask" }).value);
  expect(ahead(counter, { ...truth, value: "gone" }, ['{"type":"add"}'], undefined).value).toBe(
    "gone",
  );
  expect(ahead({} as never, truth, ['{"type":"add"}'], undefined)).toBe(truth);
  expect(effects).toEqual([]);
});

class MemoryStorage implements EventStorage {
  readonly kept = new Map<string, string>();
  full = false;
  get length(): number {
    return this.kept.size;
  }
  key(index: number): string | null {
    return [...this.kept.keys()][index] ?? null;
  }
  getItem(name: string): string | null {
    return this.kept.get(name) ?? null;
  }
  setItem(name: string, value: string): void {
    if (this.full) throw new Error("full");
    this.kept.set(name, value);
  }
  removeItem(name: string): void {
    this.kept.delete(name);
  }
}

test("events that wait outlive the page, under their ids", async () => {
  const storage = new MemoryStorage();
  const first = await fakeHub().connect({ offlineQueue: storage });
  first.socket.say(snapshot(1));
  void first.store.send({ type: "one" });
  void first.store.send({ type: "two" });
  first.socket.say(ack(first.socket.sent[0]?.id, 2));
  expect(storage.length).toBe(1);
  // The page is loaded again: nobody closed the store.
  const again = await fakeHub().connect({ offlineQueue: storage });
  void again.store.send({ type: "three" });
  again.socket.say(snapshot(2));
  expect(again.socket.sent.map(({ id, event }) => [id, event])).toEqual([
    [first.socket.sent[1]?.id, { type: "two" }],
    [expect.any(String), { type: "three" }],
  ]);
  again.socket.say(ack(again.socket.sent[0]?.id, 3));
  again.socket.say(ack(again.socket.sent[1]?.id, 4));
  expect(storage.length).toBe(0);
  const other = await fakeHub().connect({ offlineQueue: storage, sessionId: "other" });
  other.socket.say(snapshot(1));
  expect(other.socket.sent).toEqual([]);
});

test("a storage that is full, broken or someone else's costs no event", async () => {
  const storage = new MemoryStorage();
  storage.kept.set('machinehub.queue ["http://hub/Wu5gAj/","a/b é"] x', "{");
  storage.kept.set("others", "1");
  storage.full = true;
  const { store, socket } = await fakeHub().connect({ offlineQueue: storage });
  socket.say(snapshot(1));
  void store.send({ type: "one" });
  expect(socket.sent.length).toBe(1);
  expect(new Queue(storage, "http://hub/Wu5gAj/", "a/b é").load()).toEqual([]);
});

test("what is given up is not kept", async () => {
  const storage = new MemoryStorage();
  const { store, socket } = await fakeHub().connect({ offlineQueue: storage });
  socket.say(snapshot(1));
  const sent = store.send({ type: "one" });
  store.close();
  expect((await sent).outcome).toBe("rejected");
  expect(storage.length).toBe(0);
  const outbox = new Outbox("p", 10, 1000, new Queue(storage, "u", "s"));
  expect([...outbox.waiting]).toEqual([]);
});

test("a session that was started anew is found again", async () => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  socket.say(snapshot(41));
  socket.hangUp(4010, "started anew");
  const second = await hub.next(2);
  second.say({ ...snapshot(1), version: 2 });
  expect([store.status, store.getSnapshot().seq, store.getSnapshot().version]).toEqual([
    "open",
    1,
    2,
  ]);
  second.say({ type: "update", seq: 2, snapshot: { value: "b", context: {}, status: "active" } });
  expect(store.getSnapshot().value).toBe("b");
});

test("what is sent while an update waits for its answer is not counted twice", async () => {
  const { store, socket, seen, count } = await aheadOf(at(1, 0));
  void store.send({ type: "add" });
  socket.say(update(2, 1)); // ours, whose answer comes in a moment
  void store.send({ type: "add" });
  expect(count()).toBe(2);
  socket.say(ack(socket.sent[0]?.id, 2));
  expect([count(), store.getSnapshot().pending]).toEqual([2, 1]);
  socket.say(update(3, 2));
  socket.say(ack(socket.sent[1]?.id, 3));
  socket.say(update(4, 5, "other"));
  expect([count(), store.getSnapshot().pending]).toEqual([5, 0]);
  expect(seen.every((value, index) => index === 0 || value >= (seen[index - 1] ?? 0))).toBe(true);
  store.close();
});

test("a page that is loaded again does not count what the hub may have", async () => {
  const storage = new MemoryStorage();
  const first = await fakeHub().connect({ offlineQueue: storage, optimistic: counter });
  first.socket.say(at(1, 0));
  for (let n = 0; n < 3; n++) void first.store.send({ type: "add" });
  const { store, socket } = await fakeHub().connect({ offlineQueue: storage, optimistic: counter });
  const shown: number[] = [];
  store.subscribe((state) => shown.push((state.context as { count: number }).count));
  expect(store.getSnapshot().pending).toBe(3);
  socket.say(at(3, 2)); // two had arrived
  expect(socket.sent.length).toBe(3);
  socket.say(ack(socket.sent[0]?.id, 2));
  socket.say(ack(socket.sent[1]?.id, 3));
  socket.say(update(4, 3));
  socket.say(ack(socket.sent[2]?.id, 4));
  expect([shown.at(-1), store.getSnapshot().pending]).toEqual([3, 0]);
  expect(Math.max(...shown)).toBe(3);
  expect(shown).toEqual([...shown].sort((one, other) => one - other));
  store.close();
});

// Against a real hub, over both transports. tests/clients/test_client.py starts the hub, deploys the machines and runs this.

import { WebSocket } from "ws";
import { afterEach, describe, expect, test } from "vitest";
import { connect, type ConnectOptions, type Store } from "../src/index.ts";
import { randomKey } from "../src/key.ts";

const machines = JSON.parse(process.env["HUB_MACHINES"] ?? "{}") as { [name: string]: string };
const open: Store[] = [];
let sessions = 0;

afterEach(() => {
  for (const store of open.splice(0)) store.close();
});

if (!process.env["HUB_MACHINES"])
  throw new Error(
    "these tests need a hub: python -m pytest tests/clients/test_client.py starts one and runs them; `npm test` runs the others",
  );

describe.each(["websocket", "sse"] as const)("over %s", (transport) => {
  const session = (): string => `${transport} é/${++sessions}`;
  const join = (
    machine: string,
    sessionId: string,
    options: Partial<ConnectOptions> = {},
  ): Store => {
    const store = connect({
      url: machines[machine] ?? `${machines["counter"]?.slice(0, -8)}${machine}`,
      sessionId,
      transport,
      WebSocket,
      clientKey: randomKey(),
      ...options,
    });
    open.push(store);
    return store;
  };

  test("two clients share a counter", async () => {
    const sessionId = session();
    const [one, two] = [join("counter", sessionId), join("counter", sessionId)];
    expect(one.status).toBe("connecting");
    const acks = await Promise.all([1, 2, 3, 4, 5].map(() => one.send({ type: "increment" })));
    expect(acks.map((ack) => ack.outcome)).toEqual(Array(5).fill("accepted"));
    expect(acks.map((ack) => ack.seq)).toEqual(
      [...acks.map((ack) => ack.seq)].sort((a, b) => a - b),
    );
    expect(one.getSnapshot().context).toEqual({ count: 5 });
    await two.waitFor((state) => state.context.count === 5);
    expect((await two.send({ type: "decrement" })).outcome).toBe("accepted");
    await one.waitFor((state) => state.context.count === 4);
    expect([one.status, two.status, one.error]).toEqual(["open", "open", null]);
  });

  test("can and nextEvents know the definition once it is there", async () => {
    const store = join("checkout", session());
    await store.waitFor((state) => state.seq > 0);
    store.getSnapshot().can("anything");
    await store.waitFor((state) => state.nextEvents.length > 0);
    const [next] = store.getSnapshot().nextEvents;
    expect([store.getSnapshot().can(next ?? ""), store.getSnapshot().can("no such event")]).toEqual(
      [true, false],
    );
  });

  test("what is emitted is heard, rejections say why", async () => {
    const store = join("room", session());
    const heard: unknown[] = [];
    store.on("said", (event) => heard.push(event));
    await store.send({ type: "SAY", text: "hi" });
    expect(await store.send({ type: "BOOM" })).toMatchObject({
      outcome: "rejected",
      error: { code: "machine_error" },
    });
    expect(await store.send({ type: "presence.left" })).toMatchObject({
      outcome: "rejected",
      error: { code: "invalid_event" },
    });
    await store.waitFor(() => heard.length === 1);
    expect(heard).toEqual([{ type: "said", text: "hi" }]);
    expect((await store.send({ type: "END" })).outcome).toBe("accepted");
    expect(store.getSnapshot()).toMatchObject({ status: "done", output: { over: true } });
    expect(await store.send({ type: "SAY" })).toMatchObject({
      outcome: "rejected",
      error: { code: "session_finished" },
    });
  });

  test("a new session takes its input, one that is there keeps its own", async () => {
    const sessionId = session();
    const one = join("room", sessionId, { input: { name: "é & ü" } });
    await one.waitFor((state) => state.seq > 0);
    expect(one.getSnapshot().context.input).toEqual({ name: "é & ü" });
    const two = join("room", sessionId, { input: { name: "other" } });
    await two.waitFor((state) => state.seq > 0);
    expect(two.getSnapshot().context.input).toEqual({ name: "é & ü" });
  });

  test("members, and what they say of themselves", async () => {
    const sessionId = session();
    const clientKey = randomKey();
    const [one, two, again] = [
      join("room", sessionId, { clientKey }),
      join("room", sessionId),
      join("room", sessionId, { clientKey }),
    ];
    await one.waitFor(() => one.presence.count === 2 && one.presence.members.length === 2);
    await again.waitFor((state) => state.seq > 0);
    expect(again.presence.self).toBe(one.presence.self);
    two.setMetadata({ name: "Bob" });
    await one.waitFor(() =>
      one.presence.members.some(
        (member) => (member.metadata as { name: string } | undefined)?.name === "Bob",
      ),
    );
    await one.send({ type: "SAY", text: "x" });
    expect(one.getSnapshot().context.from).toBe(one.presence.self);
  });

  test("no such machine is the end", async () => {
    const store = join("NoSuch00", session());
    await expect(store.waitFor(() => true)).rejects.toThrow("no_such_machine");
    expect([store.status, store.error?.code]).toEqual(["closed", "no_such_machine"]);
  });

  test("two hundred events at once are applied once each, in order", async () => {
    const store = join("room", session());
    const acks = await Promise.all(
      Array.from({ length: 200 }, (_, number) => store.send({ type: "SAY", text: String(number) })),
    );
    expect(acks.every((ack) => ack.outcome === "accepted")).toBe(true);
    expect(store.getSnapshot().context.said).toEqual(
      Array.from({ length: 200 }, (_, number) => String(number)),
    );
  });
});

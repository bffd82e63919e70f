// The frames that Python makes, read as the client reads them: tests/protocols/frames.json is written and checked by tests/protocols/test_wire.py.

import { readFileSync } from "node:fs";
import { expect, test } from "vitest";
import { presenceAfter } from "../src/store.ts";
import type { Frame } from "../src/transport.ts";
import { fakeHub } from "./hub.ts";

interface Fixture {
  frames: { [name: string]: Frame };
  presence: { frame: Frame; members: string[]; count: number }[];
  sent: { [name: string]: unknown };
}
const wire = JSON.parse(
  readFileSync(new URL("../../../tests/protocols/frames.json", import.meta.url), "utf8"),
) as Fixture;

test("every frame is understood", async () => {
  const hub = fakeHub();
  const { store, socket } = await hub.connect();
  const heard: unknown[] = [];
  store.on("*", (event) => heard.push(event));
  socket.say(wire.frames["snapshot"] as Frame);
  expect(store.status).toBe("open");
  expect(store.getSnapshot()).toMatchObject({
    value: { a: "b" },
    context: { text: "é\u0000😀" },
    tags: ["busy"],
    status: "active",
    seq: 41,
    version: 3,
  });
  expect(store.presence.self).toBe("conn");
  socket.say(wire.frames["update"] as Frame);
  expect(store.getSnapshot()).toMatchObject({ status: "done", output: { n: 1 }, seq: 42 });
  socket.say(wire.frames["emitted"] as Frame);
  expect(heard).toEqual([{ type: "toast", text: "hi" }]);
  socket.say(wire.frames["error"] as Frame);
  socket.say(wire.frames["pong"] as Frame);
  expect(store.status).toBe("open");
});

test("acks settle what was sent", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(wire.frames["snapshot"] as Frame);
  const first = store.send({ type: "a" });
  const second = store.send({ type: "b" });
  const [one, two] = socket.sent.map((frame) => frame.id as string);
  socket.say({ ...(wire.frames["ack"] as Frame), id: one });
  socket.say({ ...(wire.frames["rejected"] as Frame), id: two });
  expect(await first).toEqual({
    outcome: "accepted",
    id: one,
    seq: 42,
    changed: true,
    taken: null,
  });
  expect(await second).toEqual({
    outcome: "rejected",
    id: two,
    seq: 42,
    error: { code: "cpu_exceeded", detail: 'too "much"' },
  });
});

test("presence is followed through whole lists and differences", () => {
  let presence = { count: 0, members: [], self: null } as Parameters<typeof presenceAfter>[0];
  for (const step of wire.presence) {
    presence = presenceAfter(presence, step.frame);
    expect({
      count: presence.count,
      members: presence.members.map(
        (member) => `${member.id}:${JSON.stringify(member.metadata ?? null)}`,
      ),
    }).toEqual({ count: step.count, members: step.members });
  }
});

test("what the client sends is what the hub reads", async () => {
  const { store, socket } = await fakeHub().connect();
  socket.say(wire.frames["snapshot"] as Frame);
  void store.send(wire.sent["event"] as { type: string });
  store.setMetadata(wire.sent["metadata"]);
  expect(socket.sent.map(({ id: _, ...frame }) => frame)).toEqual([
    { type: "event", event: wire.sent["event"] },
    { type: "presence", metadata: wire.sent["metadata"] },
  ]);
});

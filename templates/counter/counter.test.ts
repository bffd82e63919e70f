// The machine by itself, without a hub.
import { createActor } from "xstate";
import { expect, test } from "vitest";
import { machine } from "./counter";

test("it counts up and down", () => {
  const counter = createActor(machine).start();
  counter.send({ type: "increment" });
  counter.send({ type: "increment" });
  counter.send({ type: "decrement" });
  expect(counter.getSnapshot().context.count).toBe(1);
});

// The machine by itself, without a hub: XState runs it, and time is the test's.
import { createActor, SimulatedClock } from "xstate";
import { expect, test } from "vitest";
import { machine } from "./room";

const anna = { sender: { id: "anna" } };
const ben = { sender: { id: "ben" } };

test("the cards are turned over three seconds after everybody has voted", async () => {
  const clock = new SimulatedClock();
  const room = createActor(machine, { clock }).start();
  room.send({ type: "JOIN", name: "Anna", ...anna });
  room.send({ type: "JOIN", name: "Ben", ...ben });
  room.send({ type: "VOTE", card: 5, ...anna });
  expect(room.getSnapshot().value).toBe("voting");
  room.send({ type: "VOTE", card: 8, ...ben });
  expect(room.getSnapshot().value).toBe("turning");
  clock.increment(3000);
  await expect.poll(() => room.getSnapshot().value).toBe("revealed");
  expect(room.getSnapshot().context.summary).toEqual({ votes: 2, average: 6.5, agreed: false });
});

test("who did not join cannot vote", () => {
  const room = createActor(machine).start();
  room.send({ type: "VOTE", card: 5, ...anna });
  expect(room.getSnapshot().context.players).toEqual({});
});

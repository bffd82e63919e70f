// The machine by itself, without a hub.
import { createActor } from "xstate";
import { expect, test } from "vitest";
import { machine } from "./approval";

test("a pause goes back to where it was", () => {
  const paper = createActor(machine, { input: undefined }).start();
  paper.send({ type: "SUBMIT" });
  paper.send({ type: "APPROVE" });
  const before = paper.getSnapshot().value;
  paper.send({ type: "PAUSE" });
  expect(paper.getSnapshot().hasTag("paused")).toBe(true);
  paper.send({ type: "RESUME" });
  expect(paper.getSnapshot().value).toEqual(before);
});

test("three approvals are the end", () => {
  const paper = createActor(machine, { input: undefined }).start();
  paper.send({ type: "SUBMIT" });
  for (let n = 0; n < 3; n++) paper.send({ type: "APPROVE" });
  expect(paper.getSnapshot().output).toEqual({ approvedBy: ["legal", "finance"] });
});

// The machine by itself, without a hub.
import { createActor, waitFor } from "xstate";
import { expect, test } from "vitest";
import { machine } from "./checkout";

test("who pays gets a receipt", async () => {
  const order = createActor(machine).start();
  order.send({ type: "ADD" });
  order.send({ type: "NEXT" });
  order.send({ type: "ADDRESS", value: "1 Main Street" });
  order.send({ type: "NEXT" });
  order.send({ type: "CARD", value: "4242" });
  const paid = await waitFor(order, (state) => state.status === "done");
  expect(paid.output?.receipt).toContain("4242");
});

test("an empty cart stays where it is", () => {
  const order = createActor(machine).start();
  order.send({ type: "NEXT" });
  expect(order.getSnapshot().value).toBe("cart");
});

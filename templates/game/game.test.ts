// The machine by itself, without a hub.
import { createActor } from "xstate";
import { expect, test } from "vitest";
import { machine } from "./game";

const x = { sender: { id: "x" } };
const o = { sender: { id: "o" } };

test("three in a row win", () => {
  const game = createActor(machine).start();
  game.send({ type: "JOIN", ...x });
  game.send({ type: "JOIN", ...o });
  const moves = [0, 3, 1, 4, 2];
  moves.forEach((cell, turn) => game.send({ type: "MOVE", cell, ...(turn % 2 ? o : x) }));
  expect(game.getSnapshot().context.winner).toBe("x");
  expect(game.getSnapshot().hasTag("over")).toBe(true);
});

test("nobody moves for somebody else", () => {
  const game = createActor(machine).start();
  game.send({ type: "JOIN", ...x });
  game.send({ type: "JOIN", ...o });
  game.send({ type: "MOVE", cell: 0, ...o });
  expect(game.getSnapshot().context.board[0]).toBe(null);
});

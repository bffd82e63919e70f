// A game for two. Who may move is decided by `sender`, which the hub sets: nobody can play for somebody else.
import { assign, setup } from "xstate";

interface Sender { id: string }
interface Game { board: (null | "x" | "o")[]; players: { x?: string; o?: string }; turn: "x" | "o"; winner: null | "x" | "o" }
type GameEvent = ({ type: "JOIN" } | { type: "MOVE"; cell: number } | { type: "AGAIN" }) & { sender?: Sender };

const LINES = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]] as const;
const empty = (): Game["board"] => Array<null>(9).fill(null);

export const machine = setup({
  types: { context: {} as Game, events: {} as GameEvent },
  guards: {
    isNew: ({ context, event }) => event.sender !== undefined && context.players.x !== event.sender.id,
    isLegal: ({ context, event }) =>
      event.type === "MOVE" && context.players[context.turn] === event.sender?.id && context.board[event.cell] === null,
    isWon: ({ context }) => LINES.some(([a, b, c]) => context.board[a] && context.board[a] === context.board[b] && context.board[a] === context.board[c]),
    isFull: ({ context }) => context.board.every(Boolean),
  },
  actions: {
    place: assign(({ context, event }) => {
      const board = [...context.board];
      if (event.type === "MOVE") board[event.cell] = context.turn;
      return { board, turn: context.turn === "x" ? ("o" as const) : ("x" as const) };
    }),
  },
}).createMachine({
  id: "tic-tac-toe",
  context: { board: empty(), players: {}, turn: "x", winner: null },
  initial: "waiting",
  states: {
    waiting: {
      initial: "forBoth",
      states: {
        forBoth: { on: { JOIN: { target: "forOne", actions: assign({ players: ({ event }) => ({ x: event.sender!.id }) }) } } },
        forOne: { on: { JOIN: { guard: "isNew", target: "#playing", actions: assign({ players: ({ context, event }) => ({ ...context.players, o: event.sender!.id }) }) } } },
      },
    },
    playing: {
      id: "playing",
      always: [
        { guard: "isWon", target: "over", actions: assign({ winner: ({ context }) => (context.turn === "x" ? "o" : "x") }) },
        { guard: "isFull", target: "over" },
      ],
      on: { MOVE: { guard: "isLegal", actions: "place" } },
    },
    over: {
      tags: ["over"],
      on: { AGAIN: { target: "playing", actions: assign({ board: () => empty(), winner: null, turn: "x" }) } },
    },
  },
});

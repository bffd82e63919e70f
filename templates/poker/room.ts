// A planning poker room. Who votes is decided by `sender`, which the hub sets: nobody can vote for somebody else. The context is
// what every client may read: the app does not show the cards before they are turned over, but it could.
import { assign, fromPromise, setup } from "xstate";
import { DECK, summarize, type Card, type Summary } from "./deck";

interface Player {
  name: string;
  here: boolean;
  card: Card | null;
}

interface Room {
  topic: string;
  players: Record<string, Player>;
  summary: Summary | null;
}

interface Sent {
  sender: { id: string };
}

type RoomEvent =
  | ({ type: "JOIN"; name: string } & Sent)
  | ({ type: "VOTE"; card: Card } & Sent)
  | { type: "TOPIC"; topic: string }
  | { type: "REVEAL" }
  | { type: "AGAIN" }
  | ({ type: "presence.joined" } & Sent)
  | ({ type: "presence.left" } & Sent);

const cardsOf = (room: Room): Card[] =>
  Object.values(room.players)
    .map((player) => player.card)
    .filter((card) => card !== null);

export const machine = setup({
  types: { context: {} as Room, events: {} as RoomEvent },
  actors: {
    // A real team might ask its tracker here; this one takes a moment to think.
    count: fromPromise(async ({ input }: { input: Card[] }) => summarize(input)),
  },
  guards: {
    isPlayer: ({ context, event }) => "sender" in event && event.sender.id in context.players,
    isCard: ({ context, event }) =>
      event.type === "VOTE" && event.sender.id in context.players && DECK.includes(event.card),
    hasVotes: ({ context }) => cardsOf(context).length > 0,
    allVoted: ({ context }) => {
      const here = Object.values(context.players).filter((player) => player.here);
      return here.length > 1 && here.every((player) => player.card !== null);
    },
  },
  actions: {
    join: assign(({ context, event }) => {
      if (event.type !== "JOIN") return {};
      const known = context.players[event.sender.id];
      const player = { name: event.name.slice(0, 40), here: true, card: known?.card ?? null };
      return { players: { ...context.players, [event.sender.id]: player } };
    }),
    vote: assign(({ context, event }) => {
      if (event.type !== "VOTE") return {};
      const player = context.players[event.sender.id]!;
      return {
        players: { ...context.players, [event.sender.id]: { ...player, card: event.card } },
      };
    }),
    notePresence: assign(({ context, event }) => {
      if (!("sender" in event)) return {};
      const player = context.players[event.sender.id];
      if (!player) return {};
      const here = event.type !== "presence.left";
      return { players: { ...context.players, [event.sender.id]: { ...player, here } } };
    }),
    setTopic: assign(({ event }) =>
      event.type === "TOPIC" ? { topic: event.topic.slice(0, 200) } : {},
    ),
    clear: assign(({ context }) => ({
      summary: null,
      players: Object.fromEntries(
        Object.entries(context.players).map(([id, player]) => [id, { ...player, card: null }]),
      ),
    })),
  },
}).createMachine({
  id: "poker",
  description: "A planning poker room",
  context: { topic: "", players: {}, summary: null },
  initial: "voting",
  on: {
    JOIN: { actions: "join" },
    "presence.joined": { guard: "isPlayer", actions: "notePresence" },
    "presence.left": { guard: "isPlayer", actions: "notePresence" },
  },
  states: {
    voting: {
      always: { guard: "allVoted", target: "turning" },
      on: {
        VOTE: { guard: "isCard", actions: "vote" },
        TOPIC: { actions: "setTopic" },
        REVEAL: { guard: "hasVotes", target: "turning" },
      },
    },
    turning: {
      tags: "busy",
      after: { 3000: "counting" },
    },
    counting: {
      tags: "busy",
      invoke: {
        src: "count",
        input: ({ context }) => cardsOf(context),
        onDone: { target: "revealed", actions: assign({ summary: ({ event }) => event.output }) },
        onError: "voting",
      },
    },
    revealed: {
      on: { AGAIN: { target: "voting", actions: "clear" } },
    },
  },
});

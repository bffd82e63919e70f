// Members are in the context: a dealer deals, each player sees their own hand, and who is next is a matter of the game.

import { assign, setup } from "xstate";

export const machine = setup({
  types: {} as {
    context: { hands: Record<string, string[]>; table: string[]; next: string | null };
    events: { type: "deal"; to: string; card: string } | { type: "play"; card: string };
  },
}).createMachine({
  context: { hands: {}, table: [], next: null },
  on: {
    deal: {
      actions: assign(({ context: { hands, next }, event: { to, card } }) => ({
        hands: { ...hands, [to]: [...(hands[to] ?? []), card] },
        next: next ?? to,
      })),
    },
    play: {
      actions: assign(({ context: { hands, table, next }, event: { card } }) => {
        const players = Object.keys(hands);
        return {
          hands: { ...hands, [next!]: hands[next!]!.filter((each) => each !== card) },
          table: [...table, card],
          next: players[(players.indexOf(next!) + 1) % players.length] ?? null,
        };
      }),
    },
  },
});

interface Member {
  readonly user?: string;
  readonly roles: readonly string[];
}
interface Hands {
  hands: Record<string, string[]>;
  table: string[];
  next: string | null;
}

/** The dealer deals; whoever is next plays a card of their own. */
export const access = (given: {
  context: Hands;
  event: { type: string; card?: string };
  member: Member;
}) => {
  const { context, event, member } = given;
  if (event.type === "deal") return member.roles.includes("dealer");
  const hand = context.hands[member.user ?? ""] ?? [];
  return event.type === "play" && context.next === member.user && hand.includes(event.card ?? "");
};

/** One's own hand, and how many cards others have. */
export const view = ({ snapshot, member }: { snapshot: { context: Hands }; member: Member }) => {
  const { hands, table, next } = snapshot.context;
  const counts = Object.fromEntries(
    Object.entries(hands).map(([user, hand]) => [user, hand.length]),
  );
  return { ...snapshot, context: { hand: hands[member.user ?? ""] ?? [], counts, table, next } };
};

// A session is one user's: the app gives each user a token for the session `user-<sub>` alone, and nobody else gets in.

import { assign, setup } from "xstate";

export const machine = setup({
  types: {} as {
    context: { items: string[] };
    events: { type: "add"; item: string } | { type: "checkout" };
  },
}).createMachine({
  context: { items: [] },
  initial: "shopping",
  states: {
    shopping: {
      on: {
        add: {
          actions: assign({ items: ({ context, event }) => [...context.items, event.item] }),
        },
        checkout: { target: "paid", guard: ({ context }) => context.items.length > 0 },
      },
    },
    paid: { type: "final" },
  },
});

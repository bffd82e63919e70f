// A checkout in steps: guards keep incomplete forms out, an invoked promise takes the payment.
import { assign, fromPromise, setup } from "xstate";

interface Order { items: number; address: string; card: string; receipt: string; problem: string }

type CheckoutEvent =
  | { type: "ADD" } | { type: "REMOVE" } | { type: "NEXT" } | { type: "BACK" }
  | { type: "ADDRESS"; value: string } | { type: "CARD"; value: string };

export const machine = setup({
  types: { context: {} as Order, events: {} as CheckoutEvent, output: {} as { receipt: string } },
  guards: {
    hasItems: ({ context }) => context.items > 0,
    hasAddress: ({ context }) => context.address.trim().length > 5,
  },
  actors: {
    // A real shop would fetch; this one decides by the card's last digit, after a while.
    pay: fromPromise(async ({ input }: { input: { card: string; items: number } }) => {
      await new Promise((resolve) => setTimeout(resolve, 200));
      if (!/^\d{4,}$/.test(input.card) || input.card.endsWith("0")) throw new Error("the card was declined");
      return `receipt for ${input.items} items, card ending in ${input.card.slice(-4)}`;
    }),
  },
}).createMachine({
  id: "checkout",
  context: { items: 0, address: "", card: "", receipt: "", problem: "" },
  initial: "cart",
  output: ({ context }) => ({ receipt: context.receipt }),
  states: {
    cart: {
      on: {
        ADD: { actions: assign({ items: ({ context }) => context.items + 1 }) },
        REMOVE: { guard: "hasItems", actions: assign({ items: ({ context }) => context.items - 1 }) },
        NEXT: { guard: "hasItems", target: "shipping" },
      },
    },
    shipping: {
      on: {
        ADDRESS: { actions: assign({ address: ({ event }) => event.value }) },
        NEXT: { guard: "hasAddress", target: "payment" },
        BACK: "cart",
      },
    },
    payment: {
      on: { CARD: { target: "paying", actions: assign({ card: ({ event }) => event.value, problem: "" }) }, BACK: "shipping" },
    },
    paying: {
      tags: ["busy"],
      invoke: {
        src: "pay",
        input: ({ context }) => ({ card: context.card, items: context.items }),
        onDone: { target: "paid", actions: assign({ receipt: ({ event }) => event.output }) },
        onError: { target: "payment", actions: assign({ problem: ({ event }) => (event.error as Error).message }) },
      },
    },
    paid: { type: "final" },
  },
});

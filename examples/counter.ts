// A counter that everybody who opens it shares.
import { assign, setup } from "xstate";

type CounterEvent = { type: "increment" } | { type: "decrement" };

export const machine = setup({
  types: { context: {} as { count: number }, events: {} as CounterEvent },
}).createMachine({
  id: "counter",
  description: "A shared counter",
  context: { count: 0 },
  initial: "active",
  states: {
    active: {
      on: {
        increment: { actions: assign({ count: ({ context }) => context.count + 1 }) },
        decrement: { actions: assign({ count: ({ context }) => context.count - 1 }) },
      },
    },
  },
});

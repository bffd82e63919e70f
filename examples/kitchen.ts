// A kitchen that spawns a cook for each order; cooks report back and are gone.
import { assign, enqueueActions, sendParent, setup, stopChild, type ActorRefFrom } from "xstate";

const cook = setup({
  types: { input: {} as { dish: string; seconds: number }, context: {} as { dish: string; seconds: number } },
  delays: { cooking: ({ context }) => context.seconds * 1000 },
}).createMachine({
  id: "cook",
  context: ({ input }) => input,
  initial: "cooking",
  states: {
    cooking: { after: { cooking: "done" } },
    done: { entry: sendParent(({ context, self }) => ({ type: "READY", dish: context.dish, id: self.id })), type: "final" },
  },
});

type KitchenEvent = { type: "ORDER"; dish: string; seconds?: number } | { type: "READY"; dish: string; id: string } | { type: "CLOSE" };

export const machine = setup({
  types: { context: {} as { served: string[]; orders: number; cooks: Record<string, ActorRefFrom<typeof cook>> }, events: {} as KitchenEvent, emitted: {} as { type: "served"; dish: string } },
  actors: { cook },
}).createMachine({
  id: "kitchen",
  context: { served: [], orders: 0, cooks: {} },
  initial: "open",
  states: {
    open: {
      on: {
        ORDER: {
          actions: assign(({ context, event, spawn }) => {
            const id = `cook-${context.orders + 1}`;
            return { orders: context.orders + 1, cooks: { ...context.cooks, [id]: spawn("cook", { id, input: { dish: event.dish, seconds: event.seconds ?? 2 } }) } };
          }),
        },
        READY: {
          actions: enqueueActions(({ enqueue, context, event }) => {
            const { [event.id]: _gone, ...cooks } = context.cooks;
            enqueue.assign({ served: [...context.served, event.dish], cooks });
            enqueue.emit({ type: "served", dish: event.dish });
            enqueue(stopChild(event.id));
          }),
        },
        CLOSE: { guard: ({ context }) => Object.keys(context.cooks).length === 0, target: "closed" },
      },
    },
    closed: { type: "final" },
  },
});

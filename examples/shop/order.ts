// order.ts
import { assign, fromPromise, setup } from "xstate";

// Stands for a secret of the project: the hub puts it into the header, on the way out.
declare const secret: (name: string) => string;

interface Payment {
  order: string;
  cents: number;
}

const charge = fromPromise(async ({ input, signal }: { input: Payment; signal: AbortSignal }) => {
  const answer = await fetch("https://127.0.0.1:4242/charges", {
    method: "POST",
    headers: { Authorization: `Bearer ${secret("PAY_KEY")}`, "Content-Type": "application/json" },
    body: JSON.stringify(input),
    signal,
  });
  if (!answer.ok) throw new Error(`the payment service says ${answer.status}`);
  return ((await answer.json()) as { id: string }).id;
});

type OrderEvent =
  | ({ type: "PAY" } & Payment)
  | { type: "webhook.pay"; payload: { charge: string; settled: boolean } };

export default setup({
  types: {
    context: {} as Payment & { charge: string; settled: string; problem: string },
    events: {} as OrderEvent,
  },
  actors: { charge },
  guards: {
    isSettled: ({ event }) => event.type === "webhook.pay" && event.payload.settled,
  },
}).createMachine({
  id: "order",
  context: { order: "", cents: 0, charge: "", settled: "", problem: "" },
  initial: "cart",
  states: {
    cart: {
      on: {
        PAY: {
          target: "charging",
          actions: assign(({ event }) => ({ order: event.order, cents: event.cents, problem: "" })),
        },
      },
    },
    charging: {
      invoke: {
        src: "charge",
        input: ({ context }) => ({ order: context.order, cents: context.cents }),
        onDone: [
          { guard: ({ context, event }) => event.output === context.settled, target: "paid" },
          { target: "waiting", actions: assign({ charge: ({ event }) => event.output }) },
        ],
        onError: {
          target: "cart",
          actions: assign({ problem: ({ event }) => (event.error as Error).message }),
        },
      },
      on: {
        // The world keeps no order: this may come before the answer.
        "webhook.pay": {
          guard: "isSettled",
          actions: assign({ settled: ({ event }) => event.payload.charge }),
        },
      },
    },
    waiting: {
      on: {
        "webhook.pay": [
          { guard: "isSettled", target: "paid" },
          { target: "cart", actions: assign({ problem: "the bank said no" }) },
        ],
      },
      after: {
        1_800_000: { target: "cart", actions: assign({ problem: "the bank did not answer" }) },
      },
    },
    paid: { type: "final" },
  },
});

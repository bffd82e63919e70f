// A stopwatch: a callback actor ticks while it runs, laps are remembered.
import { assign, fromCallback, setup } from "xstate";

export const machine = setup({
  types: { context: {} as { elapsedMs: number; laps: number[] }, events: {} as { type: "START" | "STOP" | "LAP" | "RESET" | "TICK" } },
  actors: {
    ticker: fromCallback(({ sendBack }) => {
      const timer = setInterval(() => sendBack({ type: "TICK" }), 100);
      return () => clearInterval(timer);
    }),
  },
}).createMachine({
  id: "stopwatch",
  context: { elapsedMs: 0, laps: [] },
  initial: "stopped",
  states: {
    stopped: { on: { START: "running", RESET: { actions: assign({ elapsedMs: 0, laps: [] }) } } },
    running: {
      invoke: { src: "ticker" },
      on: {
        TICK: { actions: assign({ elapsedMs: ({ context }) => context.elapsedMs + 100 }) },
        LAP: { actions: assign({ laps: ({ context }) => [...context.laps, context.elapsedMs] }) },
        STOP: "stopped",
      },
    },
  },
});

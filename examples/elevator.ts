// An elevator that collects calls and serves them floor by floor.
import { assign, setup } from "xstate";

interface Shaft { floor: number; calls: number[] }

export const machine = setup({
  types: { context: {} as Shaft, events: {} as { type: "CALL"; floor: number } | { type: "OPEN" } | { type: "CLOSE" } },
  guards: {
    isCalled: ({ context }) => context.calls.length > 0,
    isHere: ({ context }) => context.calls.includes(context.floor),
  },
  actions: {
    remember: assign(({ context, event }) => (event.type === "CALL" && event.floor >= 0 && event.floor <= 9 && !context.calls.includes(event.floor) ? { calls: [...context.calls, event.floor] } : {})),
    move: assign({ floor: ({ context }) => context.floor + Math.sign((context.calls[0] ?? context.floor) - context.floor) }),
    serve: assign({ calls: ({ context }) => context.calls.filter((floor) => floor !== context.floor) }),
  },
  delays: { travel: 800, doors: 1500 },
}).createMachine({
  id: "elevator",
  context: { floor: 0, calls: [] },
  on: { CALL: { actions: "remember" } },
  initial: "idle",
  states: {
    idle: { always: { guard: "isCalled", target: "deciding" }, on: { OPEN: "open" } },
    deciding: { always: [{ guard: "isHere", target: "open" }, { guard: "isCalled", target: "moving" }, { target: "idle" }] },
    moving: { tags: ["moving"], after: { travel: { target: "deciding", actions: "move" } } },
    open: { tags: ["open"], entry: "serve", after: { doors: "deciding" }, on: { CLOSE: "deciding", OPEN: { target: "open", reenter: true } } },
  },
});

// Runs a machine of no use once, while the base image is built.
//
// What every session would make first (shapes of objects, built-ins that are made when they are first used, names) is in the
// image then, where it is shared, and no session pays for it.

import { assign, emit, setup } from "xstate";
import { collect, forget, setMachine, step } from "./session.ts";
import { forgetTimers } from "./timers.ts";

export function warm(): void {
  const machine = setup({ types: { context: {} as { count: number } } }).createMachine({
    id: "warm",
    initial: "a",
    context: { count: 0 },
    states: {
      a: {
        on: {
          E: {
            actions: [assign({ count: ({ context }) => context.count + 1 }), emit({ type: "e" })],
          },
          F: { target: "b" },
        },
      },
      b: { after: { 1000: "a" }, on: { F: { target: "a", guard: () => true } }, tags: ["t"] },
    },
  });
  setMachine(machine, { stopsOnError: false, compiled: true });
  step("[0,1]");
  collect();
  for (const type of ["E", "E", "F", "F", "E"]) {
    step(`[1,1,{"type":"${type}"},{"id":"c"}]`);
    collect();
  }
  forget();
  forgetTimers();
}

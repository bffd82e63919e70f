// A traffic light that changes by itself, and blinks when it is told to.
import { createMachine } from "xstate";

export const machine = createMachine({
  id: "traffic light",
  initial: "green",
  states: {
    green: { tags: ["go"], after: { 3000: "yellow" } },
    yellow: { after: { 1000: "red" } },
    red: { tags: ["stop"], after: { 3000: "green" } },
    blinking: {
      initial: "on",
      states: { on: { after: { 500: "off" } }, off: { after: { 500: "on" } } },
      on: { REPAIRED: "red" },
    },
  },
  on: { FAULT: ".blinking" },
});

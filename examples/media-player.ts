// Playback and volume are independent: two regions that are active at once.
import { assign, setup } from "xstate";

export const machine = setup({
  types: { context: {} as { volume: number; position: number }, events: {} as { type: "PLAY" | "PAUSE" | "STOP" | "MUTE" | "UNMUTE" | "LOUDER" | "SOFTER" } },
  delays: { tick: 1000 },
}).createMachine({
  id: "player",
  type: "parallel",
  context: { volume: 5, position: 0 },
  states: {
    playback: {
      initial: "stopped",
      states: {
        stopped: { entry: assign({ position: 0 }), on: { PLAY: "playing" } },
        playing: {
          tags: ["audible"],
          after: { tick: { target: "playing", reenter: true, actions: assign({ position: ({ context }) => context.position + 1 }) } },
          on: { PAUSE: "paused", STOP: "stopped" },
        },
        paused: { on: { PLAY: "playing", STOP: "stopped" } },
      },
    },
    volume: {
      initial: "normal",
      states: {
        normal: {
          on: {
            MUTE: "muted",
            LOUDER: { guard: ({ context }) => context.volume < 10, actions: assign({ volume: ({ context }) => context.volume + 1 }) },
            SOFTER: { guard: ({ context }) => context.volume > 0, actions: assign({ volume: ({ context }) => context.volume - 1 }) },
          },
        },
        muted: { on: { UNMUTE: "normal" } },
      },
    },
  },
});

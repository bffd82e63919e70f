// A chat room. It keeps the last messages, knows who is there, and emits a toast for each newcomer.
import { assign, emit, setup } from "xstate";

interface Sender { id: string; user?: string }
interface Room { messages: { from: string; text: string; at: number }[]; here: number }
type ChatEvent =
  | { type: "SAY"; text: string; sender?: Sender }
  | { type: "presence.joined"; count: number; sender?: Sender } | { type: "presence.left"; count: number; sender?: Sender };

const KEPT = 50;

export const machine = setup({
  types: { context: {} as Room, events: {} as ChatEvent, emitted: {} as { type: "toast"; text: string } },
  guards: { saysSomething: ({ event }) => event.type === "SAY" && typeof event.text === "string" && event.text.trim() !== "" },
}).createMachine({
  id: "chat",
  context: { messages: [], here: 0 },
  on: {
    SAY: {
      guard: "saysSomething",
      actions: assign({
        messages: ({ context, event }) => [...context.messages, { from: event.sender?.user ?? event.sender?.id ?? "?", text: event.text.slice(0, 500), at: Date.now() }].slice(-KEPT),
      }),
    },
    "presence.joined": { actions: [assign({ here: ({ event }) => event.count }), emit(({ event }) => ({ type: "toast", text: `${event.count} here now` }))] },
    "presence.left": { actions: assign({ here: ({ event }) => event.count }) },
  },
});

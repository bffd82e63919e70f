// A poll: one vote a connection, changeable until it closes.
import { assign, setup } from "xstate";

interface Poll { question: string; options: string[]; votes: Record<string, string> }
type PollEvent = { type: "VOTE"; option: string; sender?: { id: string } } | { type: "CLOSE" };

const tally = ({ options, votes }: Poll) => Object.fromEntries(options.map((option) => [option, Object.values(votes).filter((vote) => vote === option).length]));

export const machine = setup({
  types: { context: {} as Poll, events: {} as PollEvent, input: {} as { question?: string; options?: string[]; closeAfterMs?: number } | undefined },
}).createMachine({
  id: "poll",
  context: ({ input }) => ({ question: input?.question ?? "Tabs or spaces?", options: input?.options ?? ["tabs", "spaces"], votes: {} }),
  initial: "open",
  states: {
    open: {
      on: {
        VOTE: {
          guard: ({ context, event }) => context.options.includes(event.option) && event.sender !== undefined,
          actions: assign({ votes: ({ context, event }) => ({ ...context.votes, [event.sender!.id]: event.option }) }),
        },
        CLOSE: "closed",
      },
    },
    closed: { type: "final" },
  },
  output: ({ context }) => tally(context),
});

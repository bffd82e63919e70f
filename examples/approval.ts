// A document on its way through review. Interrupted work goes on where it was: a deep history state.
import { assign, setup } from "xstate";

interface Paper { approvals: string[]; comments: string[] }

export const machine = setup({
  types: {
    context: {} as Paper,
    input: {} as { approvals?: string[] } | undefined,
    events: {} as { type: "SUBMIT" | "APPROVE" | "PAUSE" | "RESUME" | "WITHDRAW" } | { type: "REJECT"; why: string },
  },
}).createMachine({
  id: "approval",
  context: ({ input }) => ({ approvals: input?.approvals ?? [], comments: [] }),
  initial: "draft",
  states: {
    draft: { on: { SUBMIT: "review" } },
    review: {
      initial: "legal",
      on: {
        PAUSE: "paused",
        WITHDRAW: "draft",
        REJECT: { target: "draft", actions: assign({ comments: ({ context, event }) => [...context.comments, event.why], approvals: [] }) },
      },
      states: {
        legal: { on: { APPROVE: { target: "finance", actions: assign({ approvals: ({ context }) => [...context.approvals, "legal"] }) } } },
        finance: {
          initial: "amount",
          states: {
            amount: { on: { APPROVE: "budget" } },
            budget: { on: { APPROVE: { target: "#approval.approved", actions: assign({ approvals: ({ context }) => [...context.approvals, "finance"] }) } } },
          },
        },
        where: { type: "history", history: "deep" },
      },
    },
    paused: { tags: ["paused"], on: { RESUME: "review.where" } },
    approved: { type: "final" },
  },
  output: ({ context }) => ({ approvedBy: context.approvals }),
});

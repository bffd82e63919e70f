// A session is a group's: whose tokens are for `team-7*` works on its boards, and editors approve what others wrote.

import { assign, setup } from "xstate";

export const machine = setup({
  types: {} as {
    context: { owner: string | null; text: string };
    events:
      | { type: "write"; text: string; sender?: { user?: string } }
      | { type: "submit" }
      | { type: "approve" }
      | { type: "reopen" };
  },
}).createMachine({
  context: { owner: null, text: "" },
  initial: "draft",
  states: {
    draft: {
      on: {
        write: {
          actions: assign(({ context, event }) => ({
            owner: context.owner ?? event.sender?.user ?? null,
            text: event.text,
          })),
        },
        submit: "review",
      },
    },
    review: { on: { approve: "published", reopen: "draft" } },
    published: { on: { reopen: "draft" } },
  },
});

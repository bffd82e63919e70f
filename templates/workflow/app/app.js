import { $, h, onState, room, store } from "./session.js";

const where = (value) =>
  typeof value === "string"
    ? value
    : Object.entries(value).map(([key, inner]) => `${key}, ${where(inner)}`)[0];

function send(type) {
  const why = type === "REJECT" ? prompt("Why?") : undefined;
  if (why === null) return;
  store.send(type === "REJECT" ? { type, why } : { type });
}

onState((state) => {
  $("#where").textContent = `${room}: ${where(state.value)}`;
  // What can happen now is asked of the machine's definition, which the client fetches.
  $("#events").replaceChildren(
    ...state.nextEvents.map((type) =>
      h("button", { textContent: type.toLowerCase(), onclick: () => send(type) }),
    ),
  );
  $("#approvals").textContent =
    `Approved by: ${state.context.approvals.join(", ") || "nobody yet"}`;
  $("#comments").replaceChildren(...state.context.comments.map((text) => h("li", {}, text)));
});

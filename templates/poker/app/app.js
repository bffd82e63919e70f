import { $, h, onState, room, store } from "./session.js";

const DECK = [1, 2, 3, 5, 8, 13, 20, "?"];

$("#join").onsubmit = (event) => {
  event.preventDefault();
  store.send({ type: "JOIN", name: event.target.elements.name.value });
};
$("#reveal").onclick = () => store.send({ type: "REVEAL" });
$("#again").onclick = () => store.send({ type: "AGAIN" });

onState((state) => {
  const { players, summary } = state.context;
  const me = players[store.presence.self];
  $("#join").hidden = me !== undefined;
  $("#cards").replaceChildren(
    ...DECK.map((card) =>
      h("button", {
        textContent: card,
        ariaPressed: String(me?.card === card),
        disabled: me === undefined || !state.matches("voting"),
        onclick: () => store.send({ type: "VOTE", card }),
      }),
    ),
  );
  $("#players").replaceChildren(
    ...Object.values(players).map(({ name, here, card }) => {
      const shown = state.matches("revealed") ? (card ?? "–") : card === null ? "…" : "✓";
      return h("li", {}, `${shown} ${name}${here ? "" : " (away)"}`);
    }),
  );
  $("#reveal").disabled = !state.matches("voting") || !Object.values(players).some((p) => p.card);
  $("#again").disabled = !state.matches("revealed");
  $("#says").textContent = state.matches("revealed")
    ? `Average ${summary.average ?? "–"}${summary.agreed ? ", and all agree" : ""}`
    : state.hasTag("busy")
      ? "Turning over…"
      : `Room ${room}: ${store.presence.count} here`;
});

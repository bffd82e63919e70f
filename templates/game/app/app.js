import { $, h, onState, store } from "./session.js";

$("#join").onclick = () => store.send({ type: "JOIN" });
$("#again").onclick = () => store.send({ type: "AGAIN" });

onState((state) => {
  const { board, players, turn, winner } = state.context;
  const mine = Object.keys(players).find((side) => players[side] === store.presence.self);
  const myTurn = state.matches("playing") && turn === mine;
  $("#board").replaceChildren(
    ...board.map((side, cell) =>
      h("button", {
        textContent: side ?? "",
        ariaLabel: `cell ${cell + 1} ${side ?? "empty"}`,
        disabled: !myTurn || side !== null,
        onclick: () => store.send({ type: "MOVE", cell }),
      }),
    ),
  );
  $("#join").hidden = mine !== undefined || !state.matches("waiting");
  $("#again").hidden = !state.hasTag("over");
  $("#says").textContent = state.matches("waiting")
    ? "Waiting for two players"
    : state.hasTag("over")
      ? winner === null
        ? "Nobody wins"
        : `${winner} wins`
      : mine === undefined
        ? `${turn} is to move`
        : myTurn
          ? "Your turn"
          : "The other's turn";
});

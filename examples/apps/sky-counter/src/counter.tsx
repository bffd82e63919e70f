// A counter that everybody who opens this page shares, by Stately's own packages.
//
// `url` is what `machinehub deploy` printed. `npm run sky` writes counter.sky.ts next to this file, and adds it here.
// VITE_SKY_HOST says where the hub is: 127.0.0.1:8787.
import { useStatelyActor } from "@statelyai/sky-react";

const url = "http://127.0.0.1:8787/MACHINE";

export function Counter() {
  const [state, send, , { isConnecting }] = useStatelyActor({
    url,
    sessionId: "shared-counter",
    apiKey: import.meta.env.VITE_SKY_API_KEY,
    onPlayerJoined: ({ numberOfPlayers }) => showPlayers(numberOfPlayers),
    onPlayerLeft: ({ numberOfPlayers }) => showPlayers(numberOfPlayers),
  });
  return (
    <main>
      <h1>{state.context.count}</h1>
      <button onClick={() => send?.({ type: "decrement" })}>−</button>{" "}
      <button onClick={() => send?.({ type: "increment" })}>+</button>
      <p>
        {isConnecting ? "connecting" : "connected"}, <span id="players">?</span> here
      </p>
    </main>
  );
}

function showPlayers(count: number) {
  document.querySelector("#players")!.textContent = String(count);
}

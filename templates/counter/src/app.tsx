// The machine itself runs ahead in the browser (`optimistic`): a click shows at once, and the hub's answer is what counts.
import { useMachine } from "@machinehub/client/react";
import { machine as ahead } from "../counter";
import { machine, url } from "./machine.hub";

export function App() {
  const [state, send, { status, presence }] = useMachine(
    { url, sessionId: "shared-counter" },
    { machine, optimistic: ahead },
  );
  return (
    <main>
      <h1>{state.context.count}</h1>
      <button onClick={() => send({ type: "decrement" })}>−</button>{" "}
      <button onClick={() => send({ type: "increment" })}>+</button>
      <p>{status === "open" ? `${presence.count} here` : status}</p>
    </main>
  );
}

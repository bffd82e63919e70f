// A counter that everybody who opens this page shares. `machinehub types counter -o src/counter.hub.ts` writes the machine's URL and types.
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { useMachine } from "@machinehub/client/react";
import { machine, url } from "./counter.hub";

function Counter() {
  const [state, send, { status, presence, error }] = useMachine(
    { url, sessionId: "shared-counter" },
    { machine },
  );
  return (
    <main>
      <h1>{state.context.count}</h1>
      <button onClick={() => send({ type: "decrement" })}>−</button>{" "}
      <button onClick={() => send({ type: "increment" })}>+</button>
      <p>
        {status === "open"
          ? `${presence.count} here`
          : `${status}${error ? ` (${error.code})` : ""}`}
      </p>
    </main>
  );
}

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <Counter />
  </StrictMode>,
);

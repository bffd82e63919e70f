// One order, which outlives the page: the session's id is kept in the address.
import { useState } from "react";
import { useMachine } from "@machinehub/client/react";
import { machine, url } from "./machine.hub";

const order = location.hash.slice(1) || crypto.randomUUID();
location.hash = order;

export function App() {
  const [text, setText] = useState("");
  const [state, send, { status }] = useMachine(
    { url, sessionId: order },
    { machine, offlineQueue: true },
  );
  const { items, address, receipt, problem } = state.context;
  const field = (label: string, submit: (value: string) => void) => (
    <form
      onSubmit={(event) => {
        event.preventDefault();
        submit(text);
        setText("");
      }}
    >
      <label>
        {label} <input value={text} onChange={(event) => setText(event.target.value)} required />
      </label>{" "}
      <button>OK</button>
    </form>
  );
  if (state.seq === 0) return <p>{status}…</p>;
  return (
    <main>
      <h1>{state.matches("paid") ? "Thank you" : `Your order: ${items} items`}</h1>
      {state.matches("cart") && (
        <p>
          <button onClick={() => send({ type: "REMOVE" })}>−</button>{" "}
          <button onClick={() => send({ type: "ADD" })}>+</button>
        </p>
      )}
      {state.matches("shipping") &&
        field("Address", (value) => void send({ type: "ADDRESS", value }))}
      {state.matches("shipping") && <p>{address}</p>}
      {state.matches("payment") && field("Card", (value) => void send({ type: "CARD", value }))}
      {state.hasTag("busy") && <p>Paying…</p>}
      {problem && <p role="alert">{problem}</p>}
      {receipt && <p>{receipt}</p>}
      {(state.matches("cart") || state.matches("shipping")) && (
        <button onClick={() => send({ type: "NEXT" })}>Next</button>
      )}{" "}
      {(state.matches("shipping") || state.matches("payment")) && (
        <button onClick={() => send({ type: "BACK" })}>Back</button>
      )}
    </main>
  );
}

// Sending events: a button for each that the machine knows, greyed where it would not be taken now, and a form for the rest. What
// is greyed keeps the focus, so that a keyboard does not lose its place when an event changes what is possible.

import { type Ack, type Definition, namedEvents, takes } from "@machinehub/client";
import { type SubmitEvent, useRef, useState } from "react";
import { clip, visible } from "./text.ts";

interface Sent {
  readonly type: string;
  readonly ack?: Ack;
  readonly changed?: boolean;
}

/** `why` says why nothing can be sent now, where that is so. */
export function Send({
  definition,
  value,
  why,
  send,
}: {
  definition: Definition;
  value: unknown;
  why: string | undefined;
  send: (event: { type: string }) => Promise<{ ack: Ack; changed: boolean }>;
}) {
  const [sent, setSent] = useState<Sent>();
  const [problem, setProblem] = useState("");
  const form = useRef<HTMLFormElement>(null);
  const payloads = useRef(new Map<string, string>());
  // A field takes no line breaks: the type that it stands for is remembered.
  const exact = useRef({ shown: "", type: "" });
  const number = useRef(0);
  const types = namedEvents(definition);

  const fire = async (event: { type: string }): Promise<void> => {
    const mine = ++number.current;
    setProblem("");
    setSent({ type: event.type });
    const { ack, changed } = await send(event);
    if (mine === number.current) setSent({ type: event.type, ack, changed });
  };
  const field = (name: string): HTMLInputElement =>
    form.current?.elements.namedItem(name) as HTMLInputElement;
  const edit = (type: string): void => {
    field("type").value = type;
    exact.current = { shown: field("type").value, type };
    field("payload").value = payloads.current.get(type) ?? "{ }";
    field("payload").focus();
  };
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    if (why !== undefined) return setProblem(`Not sent: ${why}`);
    const typed = field("type").value;
    const type = typed === exact.current.shown ? exact.current.type : typed;
    const text = field("payload").value.trim();
    try {
      const payload: unknown = text === "" ? {} : JSON.parse(text);
      if (typeof payload !== "object" || payload === null || Array.isArray(payload))
        throw new Error("a payload is a JSON object");
      payloads.current.set(type, text);
      void fire({ ...payload, type });
    } catch (error) {
      setProblem(`Not sent: ${error instanceof Error ? error.message : String(error)}`);
    }
  };

  return (
    <section className="send" aria-label="Send an event">
      <h2>Send</h2>
      <div className="events">
        {types.map((type) => {
          const possible = why === undefined && takes(definition, value, type);
          return (
            <span key={type} className="pair">
              <button
                aria-disabled={!possible}
                onClick={() => possible && void fire({ type })}
                title={
                  possible
                    ? visible(type)
                    : `${visible(type)}: ${why ?? "no active state takes it"}`
                }
              >
                {clip(type, 60)}
              </button>
              <button
                className="edit"
                onClick={() => edit(type)}
                aria-label={`Write a payload for ${clip(type)}`}
                title="with a payload"
              >
                …
              </button>
            </span>
          );
        })}
        {types.length === 0 && <p className="quiet">The machine names no events.</p>}
      </div>
      <form ref={form} onSubmit={submit}>
        <input
          name="type"
          aria-label="Event type"
          placeholder="type"
          required
          list="types"
          autoComplete="off"
          spellCheck={false}
        />
        <datalist id="types">
          {types.map((type) => (
            <option key={type} value={type} />
          ))}
        </datalist>
        <textarea
          name="payload"
          aria-label="Payload as JSON"
          placeholder='{ "payload": "JSON" }'
          rows={2}
          spellCheck={false}
        />
        <button aria-disabled={why !== undefined} title={why ?? ""}>
          Send
        </button>
      </form>
      <p className="outcome" role="status" data-outcome={sent?.ack?.outcome}>
        {problem || (sent === undefined ? "" : outcome(sent))}
      </p>
    </section>
  );
}

function outcome({ type, ack, changed }: Sent): string {
  const name = clip(type);
  if (ack === undefined) return `${name}: sent, waiting for the hub…`;
  if (ack.outcome === "accepted")
    return `${name}: accepted, step ${ack.seq}${changed ? "" : ", nothing changed"}`;
  return visible(`${name}: rejected, ${ack.error.code}: ${ack.error.detail}`);
}

// Sending events: a button for each that is taken now, the others folded away, and a form for the rest. An event whose payload the
// machine's types describe gets a form of its own.

import { type Ack, type Definition, namedEvents, takes } from "@machinehub/client";
import { type SubmitEvent, useRef, useState } from "react";
import { PayloadForm } from "./payload.tsx";
import { clip, visible, visibleLines } from "./text.ts";

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
  pressed,
}: {
  definition: Definition;
  value: unknown;
  why: string | undefined;
  send: (event: { type: string }) => Promise<{ ack: Ack; changed: boolean }>;
  /** Gets what presses a button from elsewhere: the chart's events are buttons, too. */
  pressed: { current: (type: string) => void };
}) {
  const [sent, setSent] = useState<Sent>();
  const [problem, setProblem] = useState("");
  const form = useRef<HTMLFormElement>(null);
  const payloads = useRef(new Map<string, string>());
  // A field takes no line breaks: the type that it stands for is remembered.
  const exact = useRef({ shown: "", type: "" });
  const number = useRef(0);
  const [writing, setWriting] = useState<string>();
  const types = namedEvents(definition);
  const possible = types.filter((type) => why === undefined && takes(definition, value, type));
  // What has the focus stays where it is: a keyboard must not lose its place when an event changes what is possible.
  const [held, setHeld] = useState<string>();
  const first = types.filter((type) => possible.includes(type) || type === held);
  const others = types.filter((type) => !first.includes(type));
  const fieldsOf = (type: string) =>
    definition.payloads !== undefined && Object.hasOwn(definition.payloads, type)
      ? (definition.payloads[type] ?? [])
      : [];
  const press = (type: string): void => {
    if (!possible.includes(type)) return;
    if (fieldsOf(type).some(({ optional }) => !optional)) setWriting(type);
    else void fire({ type });
  };

  const fire = async (event: { type: string }): Promise<void> => {
    const mine = ++number.current;
    setProblem("");
    setSent({ type: event.type });
    const { ack, changed } = await send(event);
    if (mine === number.current) setSent({ type: event.type, ack, changed });
  };
  const field = (name: string): HTMLInputElement =>
    form.current?.elements.namedItem(name) as HTMLInputElement;
  pressed.current = press;
  const edit = (type: string): void => {
    if (fieldsOf(type).length > 0) return setWriting(type);
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
      <Events
        types={first}
        possible={possible}
        press={press}
        edit={edit}
        hold={setHeld}
        why={why}
      />
      {types.length === 0 && <p className="quiet">The machine names no events.</p>}
      {others.length > 0 && (
        <details className="others">
          <summary>
            {why === undefined
              ? `${others.length} more that no active state takes`
              : `${others.length} that cannot be sent: ${why}`}
          </summary>
          <Events types={others} possible={[]} press={press} edit={edit} why={why} />
        </details>
      )}
      {writing !== undefined && (
        <PayloadForm
          key={writing}
          type={writing}
          fields={fieldsOf(writing)}
          why={why}
          send={(event) => {
            setWriting(undefined);
            void fire(event);
          }}
          refuse={setProblem}
        />
      )}
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
          onKeyDown={(event) => {
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey))
              event.currentTarget.form?.requestSubmit();
          }}
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

function Events({
  types,
  possible,
  press,
  edit,
  hold,
  why,
}: {
  types: readonly string[];
  possible: readonly string[];
  press: (type: string) => void;
  edit: (type: string) => void;
  /** Hears which event's button has the focus. */
  hold?: (type: string | undefined) => void;
  why: string | undefined;
}) {
  const titleOf = (type: string): string =>
    possible.includes(type) ? type : `${type}: ${why ?? "no active state takes it"}`;
  return (
    <div className="events">
      {types.map((type) => (
        <span key={type} className="pair">
          <button
            aria-disabled={!possible.includes(type)}
            onClick={() => press(type)}
            onFocus={() => hold?.(type)}
            onBlur={() => hold?.(undefined)}
            title={visible(titleOf(type))}
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
      ))}
    </div>
  );
}

function outcome({ type, ack, changed }: Sent): string {
  const name = clip(type);
  if (ack === undefined) return `${name}: sent, waiting for the hub…`;
  if (ack.outcome === "accepted" && ack.taken === false)
    return `${name}: not taken, by a guard or by the state (seq ${ack.seq})`;
  if (ack.outcome === "accepted")
    return `${name}: accepted, seq ${ack.seq}${changed ? "" : ", nothing changed"}`;
  return `${name}: rejected, ${visible(ack.error.code)}: ${visibleLines(ack.error.detail)}`;
}

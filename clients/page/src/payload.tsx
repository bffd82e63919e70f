// The form of an event's payload, where the machine's own types say what is in it.

import type { PayloadField } from "@machinehub/client";
import type { SubmitEvent } from "react";
import { clip, jsonText, visible } from "./text.ts";

export function PayloadForm({
  type,
  fields,
  why,
  send,
  refuse,
}: {
  type: string;
  fields: readonly PayloadField[];
  /** Why nothing can be sent now, where that is so. */
  why: string | undefined;
  send: (event: { type: string }) => void;
  refuse: (problem: string) => void;
}) {
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    if (why !== undefined) return refuse(`Not sent: ${why}`);
    const given = new FormData(event.currentTarget);
    try {
      send({ ...payloadOf(fields, (name) => given.get(name)), type });
    } catch (error) {
      refuse(`Not sent: ${error instanceof Error ? error.message : String(error)}`);
    }
  };
  return (
    <form className="payload" onSubmit={submit} aria-label={`Payload of ${clip(type)}`}>
      <b>{clip(type, 60)}</b>
      {fields.map((field, index) => (
        <label key={field.name}>
          <span>{`${visible(field.name)}${field.optional ? " (optional)" : ""}`}</span>
          <Field field={field} focus={index === 0} />
        </label>
      ))}
      <button aria-disabled={why !== undefined}>Send</button>
    </form>
  );
}

function Field({ field, focus }: { field: PayloadField; focus: boolean }) {
  const { name, kind, optional = false } = field;
  switch (kind) {
    case "boolean":
      return <input name={name} type="checkbox" autoFocus={focus} />;
    case "choice":
      return (
        <select name={name} required={!optional} autoFocus={focus}>
          {optional && <option value="">…</option>}
          {(field.values ?? []).map((value) => {
            const text = jsonText(value) ?? "null";
            return (
              <option key={text} value={text}>
                {clip(typeof value === "string" ? value : text, 60)}
              </option>
            );
          })}
        </select>
      );
    case "number":
      return <input name={name} type="number" step="any" required={!optional} autoFocus={focus} />;
    case "text":
      return <input name={name} type="text" autoComplete="off" autoFocus={focus} />;
    case "json":
      return (
        <textarea
          name={name}
          rows={2}
          placeholder="JSON"
          required={!optional}
          spellCheck={false}
          autoFocus={focus}
        />
      );
  }
}

/** What is in the form, as the event's members. Throws for JSON that is none. */
export function payloadOf(
  fields: readonly PayloadField[],
  read: (name: string) => unknown,
): Record<string, unknown> {
  const payload: Record<string, unknown> = {};
  for (const { name, kind, optional = false } of fields) {
    const given = read(name);
    const text = typeof given === "string" ? given : "";
    if (kind === "boolean") payload[name] = given !== null;
    else if (optional && text === "") continue;
    else if (kind === "number") payload[name] = Number(text);
    else if (kind === "text") payload[name] = text;
    else payload[name] = JSON.parse(text) as unknown;
  }
  return payload;
}

// JSON as a tree that folds, with what changed marked. An author's data: only ever text.

import { memo } from "react";

const SHOWN = 100;
const TEXT = 400;

export const Tree = memo(function Tree({ value, before, name, open = true }: { value: unknown; before: unknown; name?: string; open?: boolean }) {
  const changed = before !== undefined && !same(value, before);
  const label = name === undefined ? null : <span className="key">{name}: </span>;
  if (typeof value !== "object" || value === null) {
    // A new key makes a new element, whose animation begins anew.
    return <div className="leaf">{label}<span key={changed ? JSON.stringify(value) : "same"} className={`${typeof value} ${changed ? "changed" : ""}`}>{leaf(value)}</span></div>;
  }
  const entries = Object.entries(value);
  const was = typeof before === "object" && before !== null ? (before as { [key: string]: unknown }) : undefined;
  const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  if (entries.length === 0) return <div className="leaf">{label}<span className="size">{Array.isArray(value) ? "[]" : "{}"}</span></div>;
  return (
    <details open={open} className="branch">
      <summary>{label}<span className={`size ${changed ? "changed" : ""}`}>{size}</span></summary>
      {entries.slice(0, SHOWN).map(([key, inner]) => <Tree key={key} name={key} value={inner} before={was === undefined ? undefined : Object.hasOwn(was, key) ? (was[key] ?? null) : NOTHING} open={entries.length <= 20} />)}
      {entries.length > SHOWN && <div className="leaf more">{`and ${entries.length - SHOWN} more`}</div>}
    </details>
  );
});

/** Stands for what was not there. */
const NOTHING = Symbol("nothing");

function leaf(value: unknown): string {
  const text = JSON.stringify(value) ?? "undefined";
  return text.length > TEXT ? `${text.slice(0, TEXT)}… (${text.length} characters)` : text;
}

export function same(one: unknown, other: unknown): boolean {
  if (Object.is(one, other)) return true;
  if (typeof one !== "object" || typeof other !== "object" || one === null || other === null || Array.isArray(one) !== Array.isArray(other)) return false;
  const keys = Object.keys(one);
  return keys.length === Object.keys(other).length && keys.every((key) => Object.hasOwn(other, key) && same((one as { [key: string]: unknown })[key], (other as { [key: string]: unknown })[key]));
}

// JSON as a tree that folds, with what changed marked. An author's data: only ever text.

import { memo, useState } from "react";
import { clip, jsonText, visible } from "./text.ts";

const SHOWN = 100;
/** Larger branches are closed at first. */
const OPEN = 20;
const TEXT = 400;

export const Tree = memo(function Tree({
  value,
  before,
  name,
}: {
  value: unknown;
  before: unknown;
  name?: string;
}) {
  const changed = before !== undefined && !same(value, before);
  const label = name === undefined ? null : <span className="key">{clip(name, 80)}: </span>;
  if (typeof value !== "object" || value === null) {
    // A new key makes a new element, whose animation begins anew.
    return (
      <div className="leaf">
        {label}
        <span
          key={changed ? JSON.stringify(value) : "same"}
          className={`${typeof value} ${changed ? "changed" : ""}`}
        >
          {leaf(value)}
        </span>
      </div>
    );
  }
  return <Branch value={value} before={before} label={label} changed={changed} />;
});

function Branch({
  value,
  before,
  label,
  changed,
}: {
  value: object;
  before: unknown;
  label: React.ReactNode;
  changed: boolean;
}) {
  const [shown, setShown] = useState(SHOWN);
  const entries = Object.entries(value as { [key: string]: unknown });
  const was =
    typeof before === "object" && before !== null
      ? (before as { [key: string]: unknown })
      : undefined;
  const size = Array.isArray(value) ? `[${entries.length}]` : `{${entries.length}}`;
  if (entries.length === 0)
    return (
      <div className="leaf">
        {label}
        <span className="size">{Array.isArray(value) ? "[]" : "{}"}</span>
      </div>
    );
  return (
    <details open={entries.length <= OPEN} className="branch">
      <summary>
        {label}
        <span className={`size ${changed ? "changed" : ""}`}>{size}</span>
      </summary>
      {entries.slice(0, shown).map(([key, inner]) => (
        <Tree
          key={key}
          name={key}
          value={inner}
          before={
            was === undefined ? undefined : Object.hasOwn(was, key) ? (was[key] ?? null) : NOTHING
          }
        />
      ))}
      {entries.length > shown && (
        <div className="leaf">
          <button
            onClick={() => setShown((count) => count * 4)}
          >{`${entries.length - shown} more`}</button>
        </div>
      )}
    </details>
  );
}

/** Stands for what was not there. */
const NOTHING = Symbol("nothing");

function leaf(value: unknown): string {
  const text = visible(jsonText(value) ?? "undefined");
  return text.length > TEXT ? `${text.slice(0, TEXT)}… (${text.length} characters)` : text;
}

export function same(one: unknown, other: unknown): boolean {
  if (Object.is(one, other)) return true;
  if (
    typeof one !== "object" ||
    typeof other !== "object" ||
    one === null ||
    other === null ||
    Array.isArray(one) !== Array.isArray(other)
  )
    return false;
  const keys = Object.keys(one);
  return (
    keys.length === Object.keys(other).length &&
    keys.every(
      (key) =>
        Object.hasOwn(other, key) &&
        same((one as { [key: string]: unknown })[key], (other as { [key: string]: unknown })[key]),
    )
  );
}

// `console`: lines for the machine's log, cut to size. Installed when this is imported: some polyfills look for it.

import * as safe from "./intrinsics.ts";
import { limits, turn } from "./turn.ts";

/** Adds a line. What is over the limits is cut with a mark, and never costs the event. */
export function log(level: string, text: string): void {
  if (turn.logChars > limits.logTotalChars || turn.logs.length > limits.logLines) return;
  const cut = text.length > limits.logChars ? safe.slice(text, 0, limits.logChars) + "…" : text;
  const line = safe.wellFormed(`["${level}",${safe.stringify(cut)}]`);
  turn.logChars += line.length;
  const full = turn.logChars > limits.logTotalChars || turn.logs.length === limits.logLines;
  safe.append(turn.logs, full ? `["warn","… further lines of this event were dropped"]` : line);
  if (full) turn.logChars = limits.logTotalChars + 1;
}

function show(value: unknown): string {
  if (typeof value === "string") return value;
  try {
    if (safe.isError(value)) return `${value.name}: ${value.message}`;
    if (typeof value === "object" && value !== null)
      return safe.stringify(value) ?? safe.toText(value);
    return safe.toText(value);
  } catch {
    return "[unprintable]";
  }
}

const at =
  (level: string) =>
  (...values: unknown[]) => {
    let text = "";
    for (let i = 0; i < values.length; i++) text += (i ? " " : "") + show(values[i]);
    log(level, text);
  };
const nothing = () => {};
(globalThis as Record<string, unknown>).console = {
  debug: at("debug"),
  log: at("info"),
  info: at("info"),
  warn: at("warn"),
  error: at("error"),
  trace: at("debug"),
  dir: at("info"),
  table: at("info"),
  assert: (ok: unknown, ...rest: unknown[]) => {
    if (!ok) at("error")("Assertion failed:", ...rest);
  },
  group: at("info"),
  groupCollapsed: at("info"),
  groupEnd: nothing,
  time: nothing,
  timeEnd: nothing,
  count: nothing,
};

// A session's public snapshot, with the questions that XState's snapshots answer: `matches`, `hasTag`, `can`.

import { type Definition, eventsOf, takes } from "./definition.ts";
import type { MachineTypes, Matching, Untyped } from "./types.ts";

/** The public snapshot, as the hub sends it: what the machine's `view` made of it, where it has one, may lack any part. */
export interface PublicSnapshot {
  readonly value?: unknown;
  readonly context?: unknown;
  readonly status?: string;
  readonly tags?: readonly string[];
  readonly output?: unknown;
  readonly error?: unknown;
  readonly children?: unknown;
}

/** A session at one moment. Never changes; every change of the session is a new one. */
export class State<T extends MachineTypes = Untyped> {
  readonly value: T["value"];
  readonly context: T["context"];
  readonly status: "active" | "done" | "error" | "stopped";
  readonly tags: readonly T["tag"][];
  readonly output: T["output"] | undefined;
  readonly error: unknown;
  readonly children: unknown;
  /** All of it, as the hub sent it: a machine's `view` may show anything. */
  readonly snapshot: unknown;
  /** How many inputs the session had; 0 as long as the hub was not heard, and all the rest is a guess. */
  readonly seq: number;
  /** The version of the machine that the session is on. */
  readonly version: number;
  /** How many of this client's events are in what is shown, and not in what the hub has told: with `optimistic` alone. */
  readonly pending: number;
  readonly #definition: () => Definition | undefined;

  constructor(
    sent: PublicSnapshot | null,
    seq: number,
    version: number,
    definition: () => Definition | undefined,
    pending = 0,
  ) {
    const snapshot: PublicSnapshot = sent ?? {};
    this.snapshot = sent instanceof State ? sent.snapshot : sent;
    this.value = snapshot.value;
    this.context = snapshot.context;
    this.status = (snapshot.status ?? "active") as this["status"];
    this.tags = snapshot.tags ?? [];
    this.output = snapshot.output;
    this.error = snapshot.error;
    this.children = snapshot.children;
    this.seq = seq;
    this.version = version;
    this.pending = pending;
    this.#definition = definition;
  }

  /** Whether the state is `value`, or inside of it: `matches("a")` holds in `{ a: "b" }`. */
  matches(value: Matching<T["value"]>): boolean {
    return within(value, this.value);
  }

  hasTag(tag: T["tag"]): boolean {
    return this.tags.includes(tag);
  }

  /**
   * Whether an active state has a transition for the event. Guards are code, and run on the hub: they count as true here.
   * The machine's definition is fetched when this is asked first; until it is there the answer is false, and afterwards
   * subscribers are told.
   */
  can(event: T["event"] | T["event"]["type"]): boolean {
    const definition = this.#definition();
    const type = typeof event === "string" ? event : event.type;
    return (
      definition !== undefined && this.status === "active" && takes(definition, this.value, type)
    );
  }

  /** The types of the events that `can` says yes to, `*` left out. */
  get nextEvents(): T["event"]["type"][] {
    const definition = this.#definition();
    return definition === undefined || this.status !== "active"
      ? []
      : eventsOf(definition, this.value);
  }

  /** The same state, where somebody has to notice that `can` knows more now. */
  again(): State<T> {
    return new State<T>(this, this.seq, this.version, this.#definition, this.pending);
  }
}

function within(wanted: unknown, value: unknown): boolean {
  if (typeof value === "string") return wanted === value;
  if (typeof value !== "object" || value === null) return false;
  const states = value as Record<string, unknown>;
  if (typeof wanted === "string") return Object.hasOwn(states, wanted);
  if (typeof wanted !== "object" || wanted === null) return false;
  return Object.entries(wanted).every(
    ([key, inner]) => Object.hasOwn(states, key) && within(inner, states[key]),
  );
}

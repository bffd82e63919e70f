// Events on their way: sent, and not acknowledged. Decides without I/O what is sent, again or for the first time, how much at once, and
// what it means that a hub says `unavailable`. The hub applies an id once, so that sending again is always safe.

import type { Queue } from "./queue.ts";
import type { Ack, Problem } from "./types.ts";

/** What a hub says of an event that it accepted. */
export interface Said {
  readonly [field: string]: unknown;
  readonly changed?: unknown;
  readonly taken?: unknown;
}
const flag = (value: unknown): boolean | null => (typeof value === "boolean" ? value : null);

export interface Outgoing {
  readonly id: string;
  /** In the order of sending. */
  readonly number: number;
  /** The event as JSON text. */
  readonly event: string;
  /** How often the hub could not take it. */
  tries: number;
  sent: boolean;
  /** Whether an earlier page had it: it may have been sent there. */
  readonly restored: boolean;
  readonly settle: (ack: Ack) => void;
}

/** Half a character: JSON escapes it, and the hub takes no text that is not Unicode. What else begins with a backslash has an even number of them before. */
const HALF = /(?<!\\)(?:\\\\)*\\ud[89a-f]/;
/** These say nothing about the event's fate: the hub could not take it just now. */
const LATER = new Set(["unavailable", "rate_limited"]);
export const TRIES_MAX = 20;
/** Events that may be sent and not acknowledged. A hub that limits rates refuses what is over: it should not be everything that waits. */
export const WINDOW = 64;

/** JSON; undefined for what has none, as a function. (TypeScript's own type forgets that.) */
export const jsonText: (value: unknown) => string | undefined = JSON.stringify;

export const isForLater = (problem: Problem | undefined): boolean =>
  problem !== undefined && LATER.has(problem.code);

export class Outbox {
  readonly #waiting = new Map<string, Outgoing>();
  readonly #prefix: string;
  readonly #max: number;
  readonly #bytesMax: number;
  readonly #queue: Queue | undefined;
  #count = 0;

  constructor(prefix: string, max: number, bytesMax = 65_536, queue?: Queue) {
    this.#prefix = prefix;
    this.#max = max;
    this.#bytesMax = bytesMax;
    this.#queue = queue;
    for (const { id, event } of queue?.load() ?? [])
      this.#waiting.set(id, {
        id,
        number: ++this.#count,
        event,
        tries: 0,
        sent: false,
        restored: true,
        settle: () => undefined,
      });
  }

  /** All that the hub has not answered yet, in order. */
  get waiting(): Iterable<Outgoing> {
    return this.#waiting.values();
  }

  /** What should be sent now, in order. It counts as sent from here on. */
  due(): Outgoing[] {
    const due: Outgoing[] = [];
    let place = 0;
    for (const outgoing of this.#waiting.values()) {
      if (++place > WINDOW) break;
      if (!outgoing.sent) due.push(outgoing);
      outgoing.sent = true;
    }
    return due;
  }

  /** Whatever was sent may have been lost. */
  again(): void {
    for (const outgoing of this.#waiting.values()) outgoing.sent = false;
  }

  /** Takes an event up, unless too many wait. The promise always resolves. */
  add(event: unknown): Promise<Ack> {
    const number = ++this.#count;
    const id = `${this.#prefix}-${number}`;
    const refuse = (code: string, detail: string) =>
      Promise.resolve<Ack>({ outcome: "rejected", id, seq: 0, error: { code, detail } });
    let text: string | undefined;
    try {
      text = jsonText(event);
    } catch (error) {
      return refuse("invalid_event", `the event is not JSON: ${String(error)}`);
    }
    if (text === undefined || typeof (event as { type?: unknown } | null)?.type !== "string")
      return refuse("invalid_event", 'an event is an object with a "type"');
    if (HALF.test(text))
      return refuse("invalid_event", "the event holds half a character, which is no text");
    if (bytesOf(text) > this.#bytesMax)
      return refuse("event_too_large", `an event has at most ${this.#bytesMax} bytes`);
    if (this.#waiting.size >= this.#max)
      return refuse("buffer_full", `${this.#max} events wait for the hub already`);
    let settle!: (ack: Ack) => void;
    const ack = new Promise<Ack>((resolve) => (settle = resolve));
    this.#waiting.set(id, {
      id,
      number,
      event: text,
      tries: 0,
      sent: false,
      restored: false,
      settle,
    });
    this.#queue?.keep(id, number, text);
    return ack;
  }

  /** An answer of the hub's. Says for how many ms nothing should be sent, after which all that waits is sent again; 0 for not at all. */
  answered(id: string, seq: number, error?: Problem, said: Said = {}): number {
    const outgoing = this.#waiting.get(id);
    if (outgoing === undefined) return 0;
    if (isForLater(error) && ++outgoing.tries < TRIES_MAX)
      return Math.min(5000, 100 * 2 ** outgoing.tries);
    this.#waiting.delete(id);
    this.#queue?.forget(id);
    outgoing.settle(
      error === undefined
        ? { outcome: "accepted", id, seq, changed: flag(said.changed), taken: flag(said.taken) }
        : { outcome: "rejected", id, seq, error },
    );
    return 0;
  }

  /** A hub that takes less than is usual hangs up on a frame that is too large: the largest of what is on its way is the one. */
  refuseLargest(error: Problem): void {
    const [largest] = [...this.#waiting.values()]
      .filter(({ sent }) => sent)
      .sort((one, other) => bytesOf(other.event) - bytesOf(one.event));
    if (largest !== undefined) this.answered(largest.id, 0, error);
  }

  refuseAll(error: Problem): void {
    for (const id of [...this.#waiting.keys()])
      this.answered(id, 0, isForLater(error) ? { ...error, code: "closed" } : error);
  }
}

const encoder = new TextEncoder();

export const bytesOf = (text: string): number => encoder.encode(text).length;

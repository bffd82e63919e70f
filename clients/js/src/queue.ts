// Events that outlive the page: kept in a storage until the hub has answered. They come back under their ids, so that one which the hub
// had applied before the page went away counts once all the same.

import { host } from "./key.ts";

/** As much of the web's `Storage` as is needed. */
export interface EventStorage {
  readonly length: number;
  key(index: number): string | null;
  getItem(name: string): string | null;
  setItem(name: string, value: string): void;
  removeItem(name: string): void;
}

export interface Kept {
  readonly id: string;
  /** The event as JSON text. */
  readonly event: string;
}

interface Written extends Kept {
  readonly at: number;
  readonly number: number;
}

const PREFIX = "machinehub.queue";

/** The events of one session in a storage, each under a name of its own: tabs that share the storage do not overwrite each other's. */
export class Queue {
  readonly #storage: EventStorage;
  readonly #prefix: string;

  constructor(storage: EventStorage, url: string, sessionId: string) {
    this.#storage = storage;
    this.#prefix = `${PREFIX} ${JSON.stringify([url, sessionId])} `;
  }

  /** What was kept and not answered, oldest first. */
  load(): Kept[] {
    const found: Written[] = [];
    try {
      for (let index = 0; index < this.#storage.length; index++) {
        const name = this.#storage.key(index);
        if (name === null || !name.startsWith(this.#prefix)) continue;
        const written = readWritten(this.#storage.getItem(name));
        if (written !== undefined) found.push(written);
      }
    } catch {
      return []; // a storage that may not be used
    }
    return found.sort((one, other) => one.at - other.at || one.number - other.number);
  }

  keep(id: string, number: number, event: string): void {
    const written: Written = { at: Date.now(), number, id, event };
    try {
      this.#storage.setItem(this.#prefix + id, JSON.stringify(written));
    } catch {
      // full, or not to be used: then the event lives as long as the page
    }
  }

  forget(id: string): void {
    try {
      this.#storage.removeItem(this.#prefix + id);
    } catch {
      // as above
    }
  }
}

function readWritten(text: string | null): Written | undefined {
  try {
    const written = JSON.parse(text ?? "null") as Partial<Written> | null;
    const { at, number, id, event } = written ?? {};
    return typeof at === "number" &&
      typeof number === "number" &&
      typeof id === "string" &&
      typeof event === "string"
      ? { at, number, id, event }
      : undefined;
  } catch {
    return undefined;
  }
}

/** The queue that `offlineQueue` asks for; undefined where there is no storage. */
export function queueOf(
  wanted: boolean | EventStorage | undefined,
  url: string,
  sessionId: string,
): Queue | undefined {
  if (wanted === undefined || wanted === false) return undefined;
  try {
    const storage = wanted === true ? host.localStorage : wanted;
    return storage === undefined ? undefined : new Queue(storage, url, sessionId);
  } catch {
    return undefined;
  }
}

// A session as a store: `getSnapshot` says what is known, `subscribe` tells when that changed, `send` changes it. Everything else is
// how that stays true over connections that break.

import type { Definition } from "./definition.ts";
import { clientKey, host, randomKey } from "./key.ts";
import { ahead, type Predictable } from "./optimistic.ts";
import { bytesOf, isForLater, jsonText, Outbox } from "./outbox.ts";
import { type EventStorage, queueOf } from "./queue.ts";
import { socketTransport } from "./socket.ts";
import { sseTransport } from "./sse.ts";
import { type PublicSnapshot, State } from "./state.ts";
import {
  type Address,
  type Frame,
  headersOf,
  machineUrl,
  type Transport,
  wrong,
} from "./transport.ts";
import type {
  Ack,
  MachineTypes,
  Member,
  Presence,
  Problem,
  Status,
  TypesOf,
  Untyped,
} from "./types.ts";

const BUFFER_MAX = 1_000;
const METADATA_BYTES_MAX = 4_096;
const DEFINITION_RETRY_MS = 5_000;
/** How long an update waits for the next frame, which says whether it holds an own event: that one's answer is right behind it then. */
const HELD_MS = 300;
/** How long, after a connection broke, what was shown stays until the hub has said which of the own events it had taken. */
const DOUBT_MS = 2_000;
const NO_WEBSOCKET: Problem = {
  code: "no_websocket",
  detail: 'there is no WebSocket here: give one as `WebSocket`, or use the transport "sse"',
};

export interface ConnectOptions<M = unknown, O = unknown> {
  /** The machine's URL, as `machinehub deploy` prints it. */
  readonly url: string;
  /** Any text of 1 to 128 characters. Whoever names the same one is in the same session. */
  readonly sessionId: string;
  /** What a new session begins with. One that is there keeps what it began with. */
  readonly input?: TypesOf<Either<M, O>>["input"];
  /** Sent with each connection; a function is asked for each. */
  readonly token?: string | (() => string | Promise<string>) | undefined;
  /** `mhp_...`, where the hub's project gives pages one. */
  readonly publishableKey?: string | undefined;
  /** Events that may wait for the hub; more are refused with `buffer_full`. */
  readonly eventBufferMax?: number;
  /** The largest event in bytes, where the hub's settings allow another than 64 KiB. */
  readonly eventBytesMax?: number;
  /** "websocket" where there is WebSocket, else "sse". */
  readonly transport?: "websocket" | "sse" | undefined;
  /** What `machinehub types` wrote, or an XState machine: for its types, and for what is shown before the hub was heard. */
  readonly machine?: M;
  /** An XState machine that runs ahead here: what is shown is the hub's state after this client's own events that are on their way. */
  readonly optimistic?: O;
  /** Events that wait for the hub outlive the page: in `localStorage`, or in the storage that is given. */
  readonly offlineQueue?: boolean | EventStorage;
  /** By what a hub knows this client again: 16 to 128 characters that nobody else could guess. */
  readonly clientKey?: string;
  /** Instead of the global ones. */
  readonly WebSocket?: unknown;
  readonly fetch?: typeof fetch;
}

export interface Store<T extends MachineTypes = Untyped> {
  /** Sends an event. It is kept until the hub answers, over however many connections that takes; the promise always resolves. */
  send(this: void, event: T["event"]): Promise<Ack>;
  /** Calls `listener` whenever state, status, presence or error changed; returns what ends that. */
  subscribe(this: void, listener: (state: State<T>) => void): () => void;
  /** The session, as far as it is known. The same object as long as nothing changed. */
  getSnapshot(this: void): State<T>;
  /** Resolves with the first state of which `predicate` holds; rejects when the store is closed, or `signal` aborts. */
  waitFor(
    predicate: (state: State<T>) => boolean,
    options?: { readonly signal?: AbortSignal },
  ): Promise<State<T>>;
  /** Calls `listener` with what the machine emits, `"*"` for everything; returns what ends that. */
  on(type: "*", listener: (event: T["emitted"]) => void): () => void;
  on<E extends T["emitted"]["type"]>(type: E, listener: (event: Emitted<T, E>) => void): () => void;
  /** Says something of this client to everybody: any JSON up to 4 KiB. Throws a `RangeError` for more. */
  setMetadata(metadata: unknown): void;
  readonly presence: Presence;
  readonly status: Status;
  /** Why `status` is not "open". */
  readonly error: Problem | null;
  close(): void;
}

/** What says the types: `machine` where it is given, else `optimistic`. */
export type Either<M, O> = unknown extends M ? O : M;

type Emitted<T extends MachineTypes, E> = string extends T["emitted"]["type"]
  ? T["emitted"]
  : Extract<T["emitted"], { readonly type: E }>;

/** Connects to a session of a machine. */
export function connect<const M = unknown, const O = unknown>(
  options: ConnectOptions<M, O>,
): Store<TypesOf<Either<M, O>>> {
  const store = new SessionStore<TypesOf<Either<M, O>>>(options);
  store.open();
  return store;
}

const NOBODY: Presence = { count: 0, members: [], self: null };

/** Not connected until `open` is called: what a React render may make and throw away. */
export class SessionStore<T extends MachineTypes> implements Store<T> {
  status: Status = "connecting";
  error: Problem | null = null;
  presence: Presence = NOBODY;
  readonly #options: ConnectOptions;
  readonly #outbox: Outbox;
  readonly #transport: Transport;
  readonly #listeners = new Set<(state: State<T>) => void>();
  readonly #emitted = new Map<string, Set<(event: never) => void>>();
  #state: State<T>;
  /** What the hub told, where `#state` may be ahead of it. */
  #truth: State<T>;
  /** What it told since, and is not shown yet (`#hold`). */
  #next: State<T> | undefined;
  /** Own events that the hub has accepted, and that are not in the truth yet. */
  #accepted: { readonly event: string; readonly seq: number }[] = [];
  #held: ReturnType<typeof setTimeout> | undefined;
  /** Own events that were sent on a connection that broke: whether the truth has them is not known before the hub says so. */
  readonly #doubtful = new Set<string>();
  #metadata: string | undefined;
  #paused: ReturnType<typeof setTimeout> | undefined;
  #definition: Definition | undefined;
  #definitionOf = -1;
  #asking: ReturnType<typeof setTimeout> | undefined;
  readonly #address: Address;
  #cleanUp = (): void => undefined;

  constructor(options: ConnectOptions) {
    const key = options.clientKey ?? clientKey();
    this.#options = options;
    this.#outbox = new Outbox(
      randomKey(),
      options.eventBufferMax ?? BUFFER_MAX,
      options.eventBytesMax,
      queueOf(options.offlineQueue, options.url, options.sessionId),
    );
    this.#state = this.#truth = new State<T>(
      before(options.machine ?? options.optimistic),
      0,
      0,
      this.#getDefinition,
    );
    const address = (this.#address = {
      url: options.url,
      sessionId: options.sessionId,
      key,
      input: options.input,
      token: options.token,
      publishableKey: options.publishableKey,
    });
    const socket = options.WebSocket ?? host.WebSocket;
    const problem =
      wrong(address) ?? (options.transport === "websocket" && !socket ? NO_WEBSOCKET : undefined);
    if (problem !== undefined) {
      this.#transport = {
        open: () => this.#end(problem),
        send: () => undefined,
        describe: () => undefined,
        hurry: () => undefined,
        close: () => undefined,
      };
      return;
    }
    const listener = {
      frame: (frame: Frame) => this.#receive(frame),
      lost: (problem: Problem, final: boolean) => this.#lost(problem, final),
    };
    this.#transport =
      (options.transport ?? (socket ? "websocket" : "sse")) === "websocket"
        ? socketTransport(address, listener, socket, options.fetch)
        : sseTransport(address, listener, options.fetch);
  }

  open(): void {
    this.#foresee(); // events of an earlier page may wait
    this.#transport.open();
    if (this.status !== "closed" && host.addEventListener !== undefined) {
      const hurry = (): void => this.#transport.hurry();
      globalThis.addEventListener("online", hurry);
      this.#cleanUp = () => globalThis.removeEventListener("online", hurry);
    }
  }

  readonly send = (event: T["event"]): Promise<Ack> => {
    const ack = this.#outbox.add(event);
    if (this.status === "closed")
      this.#outbox.refuseAll({
        code: "closed",
        detail: this.error?.detail ?? "the store is closed",
      });
    else {
      this.#pump();
      if (this.#options.optimistic !== undefined) {
        this.#foresee();
        this.#tell();
      }
    }
    return ack;
  };

  readonly subscribe = (listener: (state: State<T>) => void): (() => void) => {
    const own = (state: State<T>): void => listener(state);
    this.#listeners.add(own);
    return () => void this.#listeners.delete(own);
  };

  readonly getSnapshot = (): State<T> => this.#state;

  waitFor(
    predicate: (state: State<T>) => boolean,
    { signal }: { readonly signal?: AbortSignal } = {},
  ): Promise<State<T>> {
    return new Promise((resolve, reject) => {
      const stop = (): void => {
        unsubscribe();
        signal?.removeEventListener("abort", abort);
      };
      const abort = (): void => {
        stop();
        reject(signal?.reason as Error);
      };
      const look = (): void => {
        try {
          if (this.#state.seq > 0 && predicate(this.#state)) resolve(this.#state);
          else if (this.status === "closed")
            reject(
              new Error(
                `${this.error?.code ?? "closed"}: ${this.error?.detail ?? "the store is closed"}`,
              ),
            );
          else return;
        } catch (error) {
          reject(error instanceof Error ? error : new Error(String(error)));
        }
        stop();
      };
      const unsubscribe = this.subscribe(look);
      signal?.addEventListener("abort", abort);
      if (signal?.aborted) abort();
      else look();
    });
  }

  on(type: string, listener: (event: never) => void): () => void {
    const listeners = this.#emitted.get(type) ?? new Set();
    const own = (event: never): void => listener(event); // the same function may listen twice
    this.#emitted.set(type, listeners.add(own));
    return () => void listeners.delete(own);
  }

  setMetadata(metadata: unknown): void {
    const text = jsonText(metadata) ?? "null";
    if (bytesOf(text) > METADATA_BYTES_MAX)
      throw new RangeError(`metadata has at most ${METADATA_BYTES_MAX} bytes`);
    this.#metadata = text;
    if (this.status === "open") this.#transport.describe(this.#metadata);
  }

  close(): void {
    if (this.status === "closed") return;
    this.#end({ code: "closed", detail: "the store was closed" });
    this.#transport.close();
  }

  #end(problem: Problem): void {
    this.status = "closed";
    this.error = problem;
    this.#cleanUp();
    clearTimeout(this.#paused);
    clearTimeout(this.#asking);
    clearTimeout(this.#held);
    this.#outbox.refuseAll(problem);
    this.#learn();
    this.#foresee();
    this.#tell();
  }

  #lost(problem: Problem, final: boolean): void {
    if (this.status === "closed") return;
    if (problem.code === "event_too_large") this.#outbox.refuseLargest(problem);
    if (final) return this.#end(problem);
    this.status = this.#state.seq > 0 ? "reconnecting" : "connecting";
    this.error = problem;
    this.#tell();
  }

  #receive(frame: Frame): void {
    if (this.status === "closed") return;
    switch (frame.type) {
      case "snapshot":
        return this.#opened(frame);
      case "update":
        if (Number(frame["seq"]) <= (this.#next ?? this.#truth).seq) return;
        // No answer came behind the one before: it holds no own event.
        if (this.#doubtful.size === 0) this.#learn();
        this.#next = this.#stateOf(frame, (this.#next ?? this.#truth).version);
        return this.#hasOwnUnderWay() ? this.#hold() : this.#show();
      case "ack":
        return this.#answered(frame);
      case "emitted":
        return this.#emit(frame["event"] as T["emitted"]);
      case "presence":
        this.presence = presenceAfter(this.presence, frame);
        return this.#tell();
    }
  }

  #opened(frame: Frame): void {
    const connection = frame["connection"] as { id: string } | undefined;
    this.#next = this.#stateOf(frame, Number(frame["version"]));
    // What was accepted before the connection broke is in it, whatever its number: the session may have been started anew.
    this.#accepted = this.#accepted.map(({ event }) => ({ event, seq: 0 }));
    this.presence = { ...this.presence, self: connection?.id ?? null };
    this.status = "open";
    this.error = null;
    if (this.#metadata !== undefined) this.#transport.describe(this.#metadata);
    if (this.#options.optimistic !== undefined)
      for (const { id, sent, restored } of this.#outbox.waiting)
        if (sent || restored) this.#doubtful.add(id);
    this.#sendAgain();
    if (this.#doubtful.size === 0) return this.#show();
    clearTimeout(this.#held);
    this.#held = setTimeout(() => this.#show(), DOUBT_MS);
    // A page that has shown nothing yet shows what the hub says, and waits with the rest.
    if (this.#truth.seq === 0) {
      this.#learn();
      this.#foresee();
    }
    this.#tell();
  }

  /** What the hub told last is what all else is computed from. */
  #learn(): void {
    const truth = (this.#truth = this.#next ?? this.#truth);
    this.#next = undefined;
    this.#accepted = this.#accepted.filter(({ seq }) => seq > truth.seq);
  }

  #hasOwnUnderWay(): boolean {
    if (this.#options.optimistic === undefined) return false;
    for (const { sent } of this.#outbox.waiting) if (sent) return true;
    return false;
  }

  /** An update may hold own events whose answers are right behind it: shown at once, they would count twice for a moment. */
  #hold(): void {
    this.#held ??= setTimeout(() => this.#show(), HELD_MS);
  }

  #show(): void {
    clearTimeout(this.#held);
    this.#held = undefined;
    this.#doubtful.clear();
    this.#learn();
    this.#foresee();
    this.#tell();
  }

  /** Sets what is shown: the truth, or with `optimistic` what it will be after the own events that are not in it. */
  #foresee(): void {
    const { optimistic } = this.#options;
    this.#state = this.#truth;
    if (optimistic === undefined) return;
    const waiting = [...this.#outbox.waiting].filter(
      ({ id, restored }) => !(restored && this.#doubtful.has(id)),
    );
    const events = [...this.#accepted, ...waiting].map(({ event }) => event);
    if (events.length === 0) return;
    const { self } = this.presence;
    const { seq, version } = this.#truth;
    const sender = self === null ? undefined : { id: self };
    // Before the hub was heard there is nothing to compute from.
    const snapshot =
      seq === 0 ? this.#truth : ahead(optimistic as Predictable, this.#truth, events, sender);
    this.#state = new State<T>(snapshot, seq, version, this.#getDefinition, events.length);
  }

  #answered(frame: Frame): void {
    const error = frame["outcome"] === "accepted" ? undefined : (frame["error"] as Problem);
    const [id, seq] = [String(frame["id"]), Number(frame["seq"])];
    const { optimistic } = this.#options;
    if (optimistic !== undefined && !isForLater(error)) {
      for (const { id: own, event } of this.#outbox.waiting)
        if (
          own === id &&
          error === undefined &&
          seq > this.#truth.seq &&
          frame["changed"] !== false
        )
          this.#accepted.push({ event, seq });
    }
    const pauseMs = this.#outbox.answered(id, seq, error, frame);
    this.#doubtful.delete(id);
    if (optimistic !== undefined && this.#doubtful.size === 0) this.#show();
    if (isForLater(error)) {
      clearTimeout(this.#paused);
      this.#paused = setTimeout(() => this.#sendAgain(), pauseMs * (0.5 + Math.random() / 2));
    } else {
      this.#pump();
    }
  }

  /** All that waits is due again, in order. */
  #sendAgain(): void {
    clearTimeout(this.#paused);
    this.#paused = undefined;
    this.#outbox.again();
    this.#pump();
  }

  #pump(): void {
    const due = this.status === "open" && this.#paused === undefined ? this.#outbox.due() : [];
    if (due.length > 0) this.#transport.send(due);
  }

  #stateOf(frame: Frame, version: number): State<T> {
    return new State<T>(
      frame["snapshot"] as PublicSnapshot,
      Number(frame["seq"]),
      version,
      this.#getDefinition,
    );
  }

  #emit(event: T["emitted"]): void {
    for (const type of [event.type, "*"]) each(this.#emitted.get(type), event as never);
  }

  #tell(): void {
    each(this.#listeners, this.#state);
  }

  /** Fetched when somebody asks what can happen, once for each version. */
  readonly #getDefinition = (): Definition | undefined => {
    const version = this.#truth.version;
    if (version > 0 && this.#definitionOf !== version) {
      this.#definitionOf = version;
      void this.#fetchDefinition(version);
    }
    return this.#definition;
  };

  async #fetchDefinition(version: number): Promise<void> {
    const fetcher = this.#options.fetch ?? globalThis.fetch;
    try {
      const headers = await headersOf(this.#address, { Accept: "application/json" });
      const response = await fetcher(
        `${machineUrl(this.#options.url).replace(/@\d+$/, "")}@${version}`,
        { headers },
      );
      if (!response.ok) throw new Error(String(response.status));
      this.#definition = ((await response.json()) as { definition: Definition }).definition;
      this.#truth = this.#truth.again();
      this.#foresee();
      this.#tell();
    } catch {
      if (this.status === "closed") return;
      this.#asking = setTimeout(() => {
        this.#definitionOf = -1;
        this.#getDefinition();
      }, DEFINITION_RETRY_MS);
    }
  }
}

/** What is shown before the hub was heard. */
function before(machine: unknown): PublicSnapshot {
  const known = machine as
    | {
        initial?: { value?: unknown; context?: unknown };
        config?: { context?: unknown; initial?: unknown };
      }
    | undefined;
  const initial = typeof known?.initial === "object" ? known.initial : undefined;
  const context = initial?.context ?? known?.config?.context;
  return {
    value: initial?.value ?? {},
    context: typeof context === "object" && context !== null ? context : {},
    status: "active",
    tags: [],
  };
}

/** Whole lists replace, others say what changed. Pure: tested with the frames that Python makes. */
export function presenceAfter(before: Presence, frame: Frame): Presence {
  const count = Number(frame["count"]);
  if (Array.isArray(frame["members"]))
    return { ...before, count, members: frame["members"] as Member[] };
  const left = new Set(frame["left"] as string[] | undefined);
  const news = new Map(
    [
      ...((frame["joined"] as Member[] | undefined) ?? []),
      ...((frame["changed"] as Member[] | undefined) ?? []),
    ].map((member) => [member.id, member]),
  );
  const members = before.members
    .filter(({ id }) => !left.has(id))
    .map((member) => news.get(member.id) ?? member);
  const listed = new Set(members.map(({ id }) => id));
  return {
    ...before,
    count,
    members: [...members, ...[...news.values()].filter(({ id }) => !listed.has(id))],
  };
}

/** Calls those who listened when it began, and still do. */
function each<A>(listeners: Set<(argument: A) => void> | undefined, argument: A): void {
  for (const listener of [...(listeners ?? [])])
    if (listeners?.has(listener)) call(listener, argument);
}

/** One listener that throws must not keep it from the others; its error is reported as an uncaught one is. */
function call<A>(listener: (argument: A) => void, argument: A): void {
  try {
    listener(argument);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}

// React over the store: one connection for each url, session and token, however many components use it, closed when the last of them is gone.

import { useCallback, useEffect, useMemo, useRef, useState, useSyncExternalStore } from "react";
import {
  type Ack,
  type ConnectOptions,
  type Either,
  type MachineTypes,
  type Presence,
  type Problem,
  type State,
  type Status,
  type Store,
  type TypesOf,
  UnopenedStore,
} from "./index.ts";

export interface Options {
  readonly url: string;
  readonly sessionId: string;
}
export type Config<M, O = unknown> = Omit<ConnectOptions<M, O>, "url" | "sessionId">;

/** StrictMode, and moving between pages, unmount the last user just before the next one comes. */
const LINGER_MS = 250;

class Shared {
  readonly store: UnopenedStore<MachineTypes>;
  #users = 0;
  #opened = false;
  #closing: ReturnType<typeof setTimeout> | undefined;

  constructor(
    readonly key: string,
    options: ConnectOptions,
  ) {
    this.store = new UnopenedStore(options);
  }

  /** From an effect: a render alone connects nothing. */
  hold = (): (() => void) => {
    clearTimeout(this.#closing);
    this.#users++;
    if (!this.#opened) this.store.open();
    this.#opened = true;
    shared.set(this.key, this);
    return () => {
      if (--this.#users === 0) this.#closing = setTimeout(() => this.#close(), LINGER_MS);
    };
  };

  /** What was only rendered goes again after a while. */
  forgetUnused(): void {
    this.#closing = setTimeout(() => this.#close(), 30_000);
    (this.#closing as { unref?: () => void }).unref?.();
  }

  #close(): void {
    if (shared.get(this.key) === this) shared.delete(this.key);
    this.store.close();
  }
}

const shared = new Map<string, Shared>();

/** The store that all components share, without rendering again when it changes: for `useSelector`, or for what is not rendered. */
export function useStore<const M = unknown, const O = unknown>(
  { url, sessionId }: Options,
  config?: Config<M, O>,
): Store<TypesOf<Either<M, O>>> {
  // Another token's text is another user; a function is asked for each connection.
  const { token } = config ?? {};
  const key = JSON.stringify([url, sessionId, typeof token === "string" ? token : ""]);
  const [generation, setGeneration] = useState(0);
  const entry = useMemo(() => {
    const known = shared.get(key);
    if (known !== undefined && known.store.status !== "closed") return known;
    const made = new Shared(key, { ...(config as Config<unknown>), url, sessionId });
    shared.set(key, made);
    made.forgetUnused();
    return made;
  }, [key, generation]);
  useEffect(() => {
    // An effect that comes back after long (a hidden tree that is shown again) finds its store closed: it needs another.
    if (entry.store.status === "closed") {
      setGeneration((number) => number + 1);
      return undefined;
    }
    return entry.hold();
  }, [entry]);
  return entry.store;
}

/** `[state, send, { status, presence, error, store }]`. What `config` says counts for the first component that connects. */
export function useMachine<const M = unknown, const O = unknown>(
  options: Options,
  config?: Config<M, O>,
): [
  state: State<TypesOf<Either<M, O>>>,
  send: (event: TypesOf<Either<M, O>>["event"]) => Promise<Ack>,
  connection: {
    status: Status;
    presence: Presence;
    error: Problem | null;
    store: Store<TypesOf<Either<M, O>>>;
  },
] {
  const store = useStore(options, config);
  const state = useRead(store, store.getSnapshot);
  const status = useRead(store, () => store.status);
  const presence = useRead(store, () => store.presence);
  const error = useRead(store, () => store.error);
  return [
    state,
    store.send,
    useMemo(() => ({ status, presence, error, store }), [status, presence, error, store]),
  ];
}

/** A part of the state; renders again only when that part is another one, by `isEqual`. */
export function useSelector<T extends MachineTypes, S>(
  store: Store<T>,
  selector: (state: State<T>) => S,
  isEqual: (one: S, other: S) => boolean = Object.is,
): S {
  const last = useRef<{ state: State<T>; selector: (state: State<T>) => S; value: S } | undefined>(
    undefined,
  );
  return useRead(store, () => {
    const state = store.getSnapshot();
    const known = last.current;
    if (known?.state === state && known.selector === selector) return known.value; // a selector may make a new object each time
    const value = selector(state);
    last.current = {
      state,
      selector,
      value: known !== undefined && isEqual(known.value, value) ? known.value : value,
    };
    return last.current.value;
  });
}

function useRead<T extends MachineTypes, S>(store: Store<T>, read: () => S): S {
  return useSyncExternalStore(store.subscribe, read, read);
}

/** What Stately's hook takes; `apiKey` and `runOnSky` are of no use here and do no harm. */
export interface StatelyOptions extends Options {
  readonly apiKey?: string;
  readonly runOnSky?: boolean;
  readonly onPlayerJoined?: (info: { numberOfPlayers: number }) => void;
  readonly onPlayerLeft?: (info: { numberOfPlayers: number }) => void;
}

type MachineOf<C> = C extends { readonly machine: infer M } ? M : unknown;

/** Stately Sky's hook, for components that were written for it: `[state, send, actor, { isConnecting }]`, the middle two undefined until it is connected. */
export function useStatelyActor<const C = unknown>(
  options: StatelyOptions,
  skyConfig?: C,
): [
  state: State<TypesOf<MachineOf<C>>>,
  send: ((event: TypesOf<MachineOf<C>>["event"]) => void) | undefined,
  actor: Store<TypesOf<MachineOf<C>>> | undefined,
  sky: { isConnecting: boolean },
] {
  const machine = (skyConfig as { machine?: MachineOf<C> } | undefined)?.machine;
  const [state, send, { presence, store }] = useMachine<MachineOf<C>>(
    options,
    machine === undefined ? undefined : { machine },
  );
  const isConnecting = state.seq === 0;
  const { count } = presence;
  const before = useRef({ store, count: 0 });
  useEffect(() => {
    const known = before.current.store === store ? before.current.count : 0;
    if (count > known) options.onPlayerJoined?.({ numberOfPlayers: count });
    else if (count < known) options.onPlayerLeft?.({ numberOfPlayers: count });
    before.current = { store, count };
  }, [count, store]);
  const tell = useCallback((event: TypesOf<MachineOf<C>>["event"]) => void send(event), [send]);
  return [
    state,
    isConnecting ? undefined : tell,
    isConnecting ? undefined : store,
    { isConnecting },
  ];
}

// What a machine's events, context and so on are called, and how they are found in what an app has: a file that `machinehub types`
// wrote, or an XState machine.

export interface EventObject {
  readonly type: string;
}

/** What is known of a machine at compile time. */
export interface MachineTypes {
  event: EventObject;
  context: unknown;
  value: unknown;
  tag: string;
  output: unknown;
  emitted: EventObject;
  input: unknown;
}

/** Before anything is known: everything is allowed. */
export interface Untyped extends MachineTypes {
  event: { readonly type: string; readonly [key: string]: unknown };
  /* eslint-disable @typescript-eslint/no-explicit-any -- people who give no types reach in freely */
  context: any;
  value: any;
  output: any;
  emitted: { readonly type: string; readonly [key: string]: any };
  input: any;
  /* eslint-enable @typescript-eslint/no-explicit-any */
}

/** A machine as `machinehub types` writes it: what is needed before the hub was heard, and its types. */
export interface Machine<T extends MachineTypes = MachineTypes> {
  readonly id?: string;
  /** What a session begins with, as far as that does not depend on its input. */
  readonly initial?: { readonly value?: T["value"]; readonly context?: T["context"] };
  readonly "~types"?: T;
}

/** As much of an XState machine's type as says what its events and its context are. */
interface XStateMachine<S, E> {
  transition(snapshot: S, event: E, ...rest: never[]): S;
  getInitialSnapshot(...rest: never[]): S;
}

/** The types of whatever an app gives as `machine`. */
export type TypesOf<M> = M extends { readonly "~types"?: infer T extends MachineTypes }
  ? T
  : M extends XStateMachine<infer S, infer E>
    ? {
        event: ClientEvent<E>;
        context: S extends { context: infer C } ? Json<C> : unknown;
        value: S extends { value: infer V } ? V : unknown;
        tag: string;
        output: S extends { output?: infer O } ? Json<O> : unknown;
        emitted: { readonly type: string; readonly [key: string]: unknown };
        input: unknown;
      }
    : Untyped;

/** The events of a machine that a client may send. `sender` is the hub's to say. */
export type ClientEvent<E> = E extends { readonly type: infer Type extends string }
  ? Type extends `xstate.${string}` | `presence.${string}`
    ? never
    : string extends Type
      ? E
      : DistributiveOmit<E, "sender">
  : never;

/** Without `K`; and an enum's member may be said as the text that it is. */
type DistributiveOmit<E, K extends PropertyKey> = E extends unknown
  ? { [P in keyof E as P extends K ? never : P]: P extends "type" ? E[P] & string : Sent<E[P]> }
  : never;

/** A date goes over the wire as text, and may be sent as one. */
type Sent<T> = T extends Date ? T | string : T;

type JsonValue =
  | string
  | number
  | boolean
  | null
  | readonly JsonValue[]
  | { readonly [key: string]: JsonValue | undefined };

/** What is left of a value once it went over the wire as JSON. */
export type Json<T> = T extends JsonValue | undefined
  ? T // at once: types that contain themselves have no end
  : T extends { toJSON(): infer J }
    ? J
    : T extends (...parameters: never[]) => unknown
      ? never
      : T extends readonly unknown[]
        ? { [K in keyof T]: Json<T[K]> }
        : T extends ReadonlyMap<unknown, unknown> | ReadonlySet<unknown>
          ? Record<string, never>
          : T extends object
            ? {
                [
                  K in keyof T as T[K] extends (...parameters: never[]) => unknown ? never : K
                ]: Json<T[K]>;
              }
            : unknown extends T
              ? T
              : never;

/** A value that `state.matches` takes: a whole state value, or the outer part of one. */
export type Matching<V> = V extends string
  ? V
  : V extends object
    ? { readonly [K in keyof V]?: Matching<V[K]> } | Extract<keyof V, string>
    : never;

export type Status = "connecting" | "open" | "reconnecting" | "closed";

/** A code of docs/errors.md, or one of the client's own: `closed`, `buffer_full`, `invalid_event`, `disconnected`, `invalid_token`. */
export interface Problem {
  readonly code: string;
  readonly detail: string;
}

/** What became of an event. `send` never rejects: a click handler need not catch anything. */
export type Ack =
  | {
      readonly outcome: "accepted";
      readonly id: string;
      readonly seq: number;
      /** Whether the public snapshot changed, and whether any transition took the event; null where the hub does not know. */
      readonly changed: boolean | null;
      readonly taken: boolean | null;
    }
  | {
      readonly outcome: "rejected";
      readonly id: string;
      readonly seq: number;
      readonly error: Problem;
    };

export interface Member {
  readonly id: string;
  readonly user: string | null;
  readonly joined_at: string;
  /** Of whoever came with a connect token. */
  readonly roles?: readonly string[];
  readonly metadata?: unknown;
}

/** Who is there. `count` is always true; `members` are at most the first hundred and whoever came since. */
export interface Presence {
  readonly count: number;
  readonly members: readonly Member[];
  /** This client's own id: `sender.id` of its events, and its member's id. */
  readonly self: string | null;
}

// @machinehub/client: a session of a machine, wherever JavaScript runs.

export { connect, type ConnectOptions, type Either, type Store } from "./store.ts";
export type { Predictable } from "./optimistic.ts";
export type { EventStorage } from "./queue.ts";
export { State, type PublicSnapshot } from "./state.ts";
export type { Definition, PayloadField, StateNode, Transition } from "./definition.ts";
export { activeNodes, describes, eventsOf, namedEvents, namesEvent, takes } from "./definition.ts";
export type {
  Ack,
  ClientEvent,
  EventObject,
  Json,
  Machine,
  MachineTypes,
  Matching,
  Member,
  Presence,
  Problem,
  Status,
  TypesOf,
  Untyped,
} from "./types.ts";
/** For `@machinehub/client/react`. */
export { SessionStore as UnopenedStore } from "./store.ts";

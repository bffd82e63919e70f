// @machinehub/client: a session of a machine, wherever JavaScript runs.

export { connect, type ConnectOptions, type Store } from "./store.ts";
export { State, type PublicSnapshot } from "./state.ts";
export type { Definition, StateNode, Transition } from "./definition.ts";
export { activeNodes, describes, namedEvents, takes } from "./definition.ts";
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

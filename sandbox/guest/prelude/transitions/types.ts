// XState's objects, as far as the tables look into them, and the tables themselves.
//
// XState's own types hide what is needed here, and say less than is true of what is left; these were written from its source.

export interface Event {
  type: string;
  [key: string]: unknown;
}
export type History = Record<string, Node[]>;
export type Value = string | { [key: string]: Value };
export type Children = Record<string, unknown>;
export type Action = string | ActionFunction | { type: string; params?: unknown };
export type Guard = string | GuardFunction | { type: string; params?: unknown };
type GuardFunction = ((args: { context: unknown; event: Event }, params: unknown) => boolean) & {
  check?: unknown;
};
/** A function of an author's, where a value may stand as well. */
export type Computed = (args: object, params?: unknown) => unknown;
export interface ActionFunction {
  (args: object, params: unknown): void;
  type?: string;
  name: string;
  event?: unknown;
  delay?: unknown;
  assignment?: unknown;
  resolve?: (
    scope: Scope,
    snapshot: unknown,
    args: object,
    params: unknown,
    action: unknown,
    extra: object,
  ) => [Snapshot, unknown, Action[] | undefined];
  retryResolve?: (scope: Scope, snapshot: unknown, params: unknown) => void;
  execute?: (scope: Scope, params: unknown, ...rest: unknown[]) => void;
}
export interface Transition {
  source: Node;
  target?: Node[];
  actions: Action[];
  guard?: Guard;
  eventType: string | null;
  reenter: boolean;
}
export interface Node {
  id: string;
  key: string;
  type: string;
  order: number;
  parent?: Node;
  machine: Machine;
  states: Record<string, Node>;
  tags: string[];
  history: string | false;
  entry: Action[];
  exit: Action[];
  always?: Transition[];
  initial: { actions: Action[] };
  output: unknown;
  transitions: Map<string, Transition[]>;
  invoke: { id: string; src: string; onSnapshot?: unknown }[];
  config: { invoke?: unknown };
}
export interface Machine {
  root: Node;
  id: string;
  config: { context?: unknown };
  options?: { maxIterations?: number };
  getTransitionData: (snapshot: Snapshot, event: Event) => Transition[];
  implementations: {
    actions: Record<string, ActionFunction>;
    guards: Record<string, Guard>;
    actors: Record<string, unknown>;
  };
}
export interface Scope {
  self: ActorLike;
  system: SystemLike;
  defer(run: () => void): void;
  actionExecutor(action: object): void;
}
interface ActorLike {
  _processingStatus: number;
  _deferred: (() => void)[];
  _parent?: unknown;
}
export interface SystemLike {
  inspect: (observer: unknown) => unknown;
  _sendInspectionEvent(event: object): void;
}
export interface Snapshot {
  status: string;
  output: unknown;
  error: unknown;
  machine: Machine;
  context: unknown;
  _nodes: Nodes;
  value: Value;
  tags: Set<string>;
  children: Children;
  historyValue: History;
  matches: unknown;
  hasTag: unknown;
  can: unknown;
  getMeta: unknown;
  toJSON: unknown;
}

/** The states that are active, in XState's order: what a snapshot calls `_nodes`. */
export type Nodes = Node[] & { [CONFIGURATION]?: Configuration };
export const CONFIGURATION = Symbol("configuration");
/** `ProcessingStatus.Running` of XState's actors. */
export const RUNNING = 1;

/** What is known of one set of active states. */
export interface Configuration {
  program: Program;
  /** Whether it is remembered. Regions multiply: what is more than the most is made anew each time. */
  kept: boolean;
  nodes: Nodes;
  value: Value;
  tags: string[];
  rows: Map<string, Row>;
  /** For types that the machine does not name, by the wildcards that fit them. */
  others: Map<string, Row>;
  /** For each atomic state the `always` of it and of its ancestors. */
  always: Transition[][] | null;
  moves: Map<string, Move>;
}

/** What an event of one type may do. `regions` are asked first; `list` only when none of them takes a transition. */
export interface Row {
  regions: Row[] | null;
  list: Transition[];
  moves: (Move | undefined)[];
}

/** One microstep: what is done when certain transitions are taken in a certain configuration. */
export interface Move {
  transitions: Transition[];
  /** Exit actions, then those of the transitions. */
  before: Action[];
  entries: Entry[];
  /** Exit actions of all states, when the machine is done. */
  after: Action[];
  recorded: [id: string, nodes: Node[]][] | null;
  changes: boolean;
  to: Configuration;
  /** Depends on history: a mark, to look for the right one under the history's own key. */
  historic: boolean;
  /** What XState threw when it was asked which states are entered; after it had run `before`. */
  fails: { error: unknown } | null;
}

export interface Entry {
  actions: Action[];
  actorIds: string[];
  final: Final | null;
}
/** What entering a final state says. */
export interface Final {
  node: Node;
  parentId: string | null;
  parallels: string[];
  completes: Node | null;
}

export interface Program {
  machine: Machine;
  configurations: Map<string, Configuration>;
  transitionIds: Map<Transition, number>;
  /** Every descriptor of the machine, and those with wildcards. */
  descriptors: Set<string>;
  wildcards: string[];
  first: Configuration;
  start: Move;
  /** How many moves are kept, in all configurations together; and rows. */
  moves: number;
  rows: number;
}

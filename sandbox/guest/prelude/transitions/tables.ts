// The tables: what an event can do to a machine, as far as it depends on nothing but the states that are active.
//
// Which states are left and entered, in which order, with which actions, and what the next value is: computed once for each
// set of transitions that is taken in a configuration, by XState's own functions, and kept. `ahead.ts` makes most of them
// while the image is made, so that sessions share them; what it does not foresee, a session makes when it first needs it.

import { spawnChild, stopChild } from "xstate";
import {
  computeEntrySet,
  computeExitSet,
  createMachineSnapshot,
  getCandidates,
  getHistoryNodes,
  getInitialStateNodes,
  getProperAncestors,
  getStateNode,
  isAtomicStateNode,
  isDescendant,
  isInFinalState,
  matchesEventDescriptor,
  removeConflictingTransitions,
} from "xstate/internals";
import {
  CONFIGURATION,
  type Action,
  type Configuration,
  type Entry,
  type Final,
  type History,
  type Machine,
  type Move,
  type Node,
  type Program,
  type Row,
  type Transition,
  type Value,
} from "./types.ts";
import { learnMethods } from "./work.ts";

/** Of one machine, made ahead and in a session together. */
const CONFIGURATIONS_MAX = 160;
const MOVES_MAX = 2048;
const ROWS_MAX = 4096;
/** Of a configuration that is not remembered itself. */
const PASSING_MOVES_MAX = 64;

/** The configuration of a snapshot that was not made here. */
export function adopted(machine: Machine, nodes: Node[]): Configuration | null {
  const program = programOf(machine);
  return program && configurationOf(program, nodes);
}

/** Null: none can be made. Beside the machines, which may be frozen. */
const programs = new WeakMap<Machine, Program | null>();

export function programOf(machine: Machine): Program | null {
  const known = programs.get(machine);
  if (known !== undefined) return known;
  let program: Program | null = null;
  try {
    // Who selects transitions in a way of its own is left to XState.
    if (!Object.hasOwn(machine, "getTransitionData")) program = makeProgram(machine);
  } catch {
    // XState will say what is wrong with the machine, when it comes to that.
  }
  programs.set(machine, program);
  return program;
}

function makeProgram(machine: Machine): Program {
  const descriptors = new Set<string>();
  const visit = (node: Node): void => {
    for (const descriptor of node.transitions.keys()) descriptors.add(descriptor);
    for (const child of Object.values(node.states)) visit(child);
  };
  visit(machine.root);
  const program = {
    machine,
    configurations: new Map(),
    transitionIds: new Map(),
    descriptors,
    moves: 0,
    rows: 0,
    wildcards: [...descriptors].filter(
      (descriptor) => descriptor === "*" || descriptor.endsWith(".*"),
    ),
  } as unknown as Program;
  learnMethods(machine);
  program.first = configurationOf(program, [machine.root]);
  const starting = {
    target: [...getInitialStateNodes(machine.root)],
    source: machine.root,
    reenter: true,
    actions: [],
    eventType: null,
  };
  program.start = moveOf(program.first, [starting], {}, true).move;
  return program;
}

/** The configuration whose `_nodes` have just this order. */
function configurationOf(program: Program, nodes: Node[]): Configuration {
  let key = "";
  for (let i = 0; i < nodes.length; i++) key += (nodes[i] as Node).order + ",";
  const known = program.configurations.get(key);
  if (known) return known;
  const { value } = createMachineSnapshot({ _nodes: nodes }, program.machine);
  const always: Transition[][] = [];
  for (const node of nodes.filter(isAtomicStateNode)) {
    const list: Transition[] = [];
    for (const each of [node, ...getProperAncestors(node, undefined)])
      if (each.always) list.push(...each.always);
    if (list.length) always.push(list);
  }
  const kept = program.configurations.size < CONFIGURATIONS_MAX;
  const configuration: Configuration = {
    program,
    kept,
    nodes: [...nodes],
    value,
    tags: [...new Set(nodes.flatMap((node) => node.tags))],
    rows: new Map(),
    others: new Map(),
    always: always.length ? always : null,
    moves: new Map(),
  };
  Object.defineProperty(configuration.nodes, CONFIGURATION, { value: configuration });
  if (kept) program.configurations.set(key, configuration);
  return configuration;
}

export const NOTHING: Row = { regions: null, list: [], moves: [] };

export function rowOf(configuration: Configuration, type: string): Row {
  const { program } = configuration;
  // What is not named by the machine is told apart only by the wildcards that it fits: strangers name events.
  const isNamed = program.descriptors.has(type);
  const rows = isNamed ? configuration.rows : configuration.others;
  const key = isNamed
    ? type
    : program.wildcards.filter((descriptor) => matchesEventDescriptor(type, descriptor)).join(" ");
  const known = rows.get(key);
  if (known) return known;
  const row = choices(program.machine.root, configuration.value, type);
  if (program.rows < ROWS_MAX) {
    program.rows++;
    rows.set(key, row);
  }
  return row;
}

/** XState's `transitionNode`, with all that it may find. */
function choices(node: Node, value: Value, type: string): Row {
  if (typeof value === "string")
    return behind(choicesOf(getStateNode(node, value), type), choicesOf(node, type));
  const keys = Object.keys(value);
  if (keys.length === 1)
    return behind(
      choices(getStateNode(node, keys[0] as string), value[keys[0] as string] as Value, type),
      choicesOf(node, type),
    );
  const regions = keys
    .filter((key) => value[key])
    .map((key) => choices(getStateNode(node, key), value[key] as Value, type))
    .filter((row) => row !== NOTHING);
  if (regions.length === 1) return behind(regions[0] as Row, choicesOf(node, type));
  const rest = choicesOf(node, type);
  return regions.length ? { regions, list: rest.list, moves: [] } : rest;
}

function choicesOf(node: Node, type: string): Row {
  const list = getCandidates(node, type);
  return list.length ? { regions: null, list, moves: [] } : NOTHING;
}

const behind = (inner: Row, outer: Row): Row =>
  outer === NOTHING
    ? inner
    : inner === NOTHING
      ? outer
      : { regions: inner.regions, list: [...inner.list, ...outer.list], moves: [] };

export function keyOf(program: Program, transitions: Transition[]): string {
  let key = "";
  for (let i = 0; i < transitions.length; i++) {
    const transition = transitions[i] as Transition;
    let id = program.transitionIds.get(transition);
    if (id === undefined) program.transitionIds.set(transition, (id = program.transitionIds.size));
    key += id + ",";
  }
  return key;
}

/** The move for these transitions, whose key is `key`, from memory if it was made before. */
export function findMove(
  configuration: Configuration,
  transitions: Transition[],
  history: History,
  key = keyOf(configuration.program, transitions),
): Move {
  const { moves } = configuration;
  const known = moves.get(key);
  if (known !== undefined && !known.historic) return known;
  const keyThen = key + pastKey(history);
  const knownThen = known && moves.get(keyThen);
  if (knownThen) return knownThen;
  const { move, historic } = moveOf(configuration, transitions, history, false);
  if (!isWorthKeeping(configuration, move)) return move;
  if (historic) keepMove(configuration, key, { ...move, historic }); // a mark
  keepMove(configuration, historic ? keyThen : key, move);
  return move;
}

/** Regions and histories multiply, so a machine may have more moves than memory: the rest is made each time anew. */
function isWorthKeeping(from: Configuration, move: Move): boolean {
  if (move.fails) return false;
  return from.kept
    ? move.to.kept && from.program.moves < MOVES_MAX
    : from.moves.size < PASSING_MOVES_MAX;
}

export function keepMove(from: Configuration, key: string, move: Move): void {
  if (from.kept) from.program.moves++;
  from.moves.set(key, move);
}

function pastKey(history: History): string {
  let key = "|";
  for (const id of Object.keys(history))
    key += id + ":" + (history[id] as Node[]).map((node) => node.order).join() + ";";
  return key;
}

/** XState's `microstep`, `exitStates` and `enterStates`, without what depends on context. */
export function moveOf(
  configuration: Configuration,
  transitions: Transition[],
  history: History,
  isInitial: boolean,
): { move: Move; historic: boolean } {
  const { program, nodes } = configuration;
  let historic = false;
  const watched = (value: History): History =>
    new Proxy(value, {
      get(target, id) {
        historic = true;
        return target[id as string];
      },
    });
  const active = new Set<Node>(nodes);
  const taken = removeConflictingTransitions(transitions, active, watched(history));
  const before: Action[] = [];
  const recorded: [string, Node[]][] = [];
  if (!isInitial) {
    const left = computeExitSet(taken, active, watched(history)).sort((a, b) => b.order - a.order);
    for (const node of left) {
      for (const past of getHistoryNodes(node)) {
        recorded.push([
          past.id,
          [...active].filter((each) =>
            past.history === "deep"
              ? isAtomicStateNode(each) && isDescendant(each, node)
              : each.parent === node,
          ),
        ]);
      }
    }
    for (const node of left) {
      before.push(
        ...node.exit,
        ...node.invoke.map((invoked: { id: string }) => stopChild(invoked.id) as unknown as Action),
      );
      active.delete(node);
    }
  }
  for (const transition of taken) before.push(...transition.actions);
  const past = recorded.length ? { ...history, ...Object.fromEntries(recorded) } : history;
  const entries: Entry[] = [];
  let done = false;
  let fails: Move["fails"] = null;
  try {
    done = enter(program, taken, watched(past), isInitial, active, entries);
  } catch (error) {
    fails = { error };
  }
  const next = [...active];
  if (done) next.sort((a, b) => b.order - a.order);
  const changes =
    recorded.length > 0 || nodes.length !== active.size || nodes.some((node) => !active.has(node));
  return {
    historic,
    move: {
      transitions,
      before,
      entries,
      after: done ? next.flatMap((node) => node.exit) : [],
      recorded: recorded.length ? recorded : null,
      changes,
      to: changes && !fails ? configurationOf(program, next) : configuration,
      historic: false,
      fails,
    },
  };
}

/** Adds the states that are entered to `active`, and what is done there to `entries`; whether the machine is done then. */
function enter(
  program: Program,
  taken: Transition[],
  history: History,
  isInitial: boolean,
  active: Set<Node>,
  entries: Entry[],
): boolean {
  const toEnter = new Set<Node>();
  const byDefault = new Set<Node>();
  computeEntrySet(taken, history, byDefault, toEnter);
  if (isInitial) byDefault.add(program.machine.root);
  const completed = new Set<Node>();
  let done = false;
  for (const node of [...toEnter].sort((a, b) => a.order - b.order)) {
    active.add(node);
    const actions = [...node.entry];
    for (const invoked of node.invoke)
      actions.push(
        spawnChild(invoked.src, {
          ...invoked,
          syncSnapshot: !!invoked.onSnapshot,
        }) as unknown as Action,
      );
    if (byDefault.has(node)) actions.push(...node.initial.actions);
    let final: Final | null = null;
    if (node.type === "final") {
      const { parent } = node;
      let marker = parent?.type === "parallel" ? parent : parent?.parent;
      let completes = marker || node;
      const parallels: string[] = [];
      while (
        marker?.type === "parallel" &&
        !completed.has(marker) &&
        isInFinalState(active, marker)
      ) {
        completed.add(marker);
        parallels.push(marker.id);
        completes = marker;
        marker = marker.parent;
      }
      final = {
        node,
        parentId: parent?.type === "compound" ? parent.id : null,
        parallels,
        completes: marker ? null : completes,
      };
      done ||= !marker;
    }
    if (actions.length || final)
      entries.push({ actions, actorIds: node.invoke.map((invoked) => invoked.id), final });
  }
  return done;
}

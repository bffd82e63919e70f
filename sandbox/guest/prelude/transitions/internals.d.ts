// What build/prelude.mjs makes XState export besides: the functions that say which states a transition leaves and enters. As
// "xstate/internals" it is known to this compiler (tsconfig.json) and to that build.

import type { Event, History, Node, Snapshot, Transition } from "./types.ts";

export function computeEntrySet(
  transitions: Transition[],
  history: History,
  byDefault: Set<Node>,
  toEnter: Set<Node>,
): void;
export function computeExitSet(
  transitions: Transition[],
  active: Set<Node>,
  history: History,
): Node[];
export function createDoneStateEvent(id: string, output?: unknown): Event;
export function createMachineSnapshot(config: object, machine: unknown): Snapshot;
export function evaluateGuard(
  guard: unknown,
  context: unknown,
  event: Event,
  snapshot: unknown,
): boolean;
export function getCandidates(node: Node, type: string): Transition[];
export function getHistoryNodes(node: Node): Node[];
export function getInitialStateNodes(node: Node): Set<Node>;
export function getProperAncestors(node: Node, to: Node | undefined): Node[];
export function getStateNode(node: Node, key: string): Node;
export function isAtomicStateNode(node: Node): boolean;
export function isDescendant(child: Node, parent: Node | undefined): boolean;
export function isInFinalState(active: Set<Node>, node: Node): boolean;
export function matchesEventDescriptor(type: string, descriptor: string): boolean;
export function removeConflictingTransitions(
  transitions: Iterable<Transition>,
  active: Set<Node>,
  history: History,
): Transition[];
export function resolveOutput(
  mapper: unknown,
  context: unknown,
  event: Event,
  self: unknown,
): unknown;

// The tables that are made while the image is made.

import { StateMachine } from "xstate";
import { keepMove, keyOf, moveOf, programOf, rowOf } from "./tables.ts";
import type { Configuration, Machine, Node, Row, Transition } from "./types.ts";

const CONFIGURATIONS_AHEAD = 96;
const COMBINATIONS_MAX = 16;
/** Rows and moves of all machines of a bundle together: it bounds the time that a deployment takes. */
const PIECES_AHEAD = 2048;
/** XState goes through all that a state takes to find what an event may do there: a row of so many costs a piece more. */
const DESCRIPTORS_A_PIECE = 50;

/** Makes the tables of a machine, and of the machines that it may invoke, so that sessions share them. */
export function prepare(machine: unknown): void {
  prepareAll(machine, new Set(), { left: PIECES_AHEAD });
}

interface Budget {
  left: number;
}

function prepareAll(logic: unknown, seen: Set<unknown>, budget: Budget): void {
  if (seen.has(logic) || !(logic instanceof StateMachine) || budget.left <= 0) return;
  seen.add(logic);
  const machine = logic as unknown as Machine;
  const program = programOf(machine);
  if (!program) return;
  // The list of configurations grows meanwhile.
  for (const configuration of program.configurations.values()) {
    if (program.configurations.size > CONFIGURATIONS_AHEAD) break;
    if (!foreseeAll(configuration, program.descriptors, budget)) break;
  }
  const visit = (node: Node): void => {
    for (const invoked of [node.config.invoke ?? []].flat())
      prepareAll((invoked as { src: unknown }).src, seen, budget);
    for (const child of Object.values(node.states)) visit(child);
  };
  visit(machine.root);
  for (const actor of Object.values(machine.implementations.actors))
    prepareAll(actor, seen, budget);
}

/** What can happen in one configuration; false when the budget is spent. */
function foreseeAll(
  configuration: Configuration,
  descriptors: Set<string>,
  budget: Budget,
): boolean {
  for (const list of configuration.always ?? [])
    for (const transition of list) foresee(configuration, [transition], null, 0, budget);
  const pieces = 1 + Math.floor(descriptors.size / DESCRIPTORS_A_PIECE);
  for (const descriptor of descriptors) {
    if (budget.left <= 0) return false;
    budget.left -= pieces;
    const row = rowOf(configuration, descriptor);
    row.list.forEach((transition, i) => {
      foresee(configuration, [transition], row, i, budget);
    });
    for (const taken of combinations(row.regions)) foresee(configuration, taken, null, 0, budget);
  }
  return true;
}

function foresee(
  configuration: Configuration,
  taken: Transition[],
  row: Row | null,
  at: number,
  budget: Budget,
): void {
  if (budget.left-- <= 0) return;
  const key = keyOf(configuration.program, taken);
  let move = configuration.moves.get(key);
  try {
    if (!move) {
      const made = moveOf(configuration, taken, {}, false);
      if (made.historic || made.move.fails || !made.move.to.kept) return;
      keepMove(configuration, key, (move = made.move));
    }
    if (row && !move.historic) row.moves[at] = move;
  } catch {
    // These are never taken together, or XState will say what is wrong with them.
  }
}

/** What may be taken in several regions at once; not all of it, where that is much. */
function combinations(regions: Row[] | null): Transition[][] {
  let all: Transition[][] = [[]];
  for (const region of regions ?? []) {
    const here = [
      ...combinations(region.regions),
      ...region.list.map((transition) => [transition]),
      [],
    ];
    all = all.flatMap((some) => here.map((more) => [...some, ...more])).slice(0, COMBINATIONS_MAX);
  }
  return all.filter((some) => some.length);
}

// The tables that are made while the image is made.

import { StateMachine } from "xstate";
import { keepMove, keyOf, moveOf, programOf, rowOf } from "./tables.ts";
import type { Configuration, Machine, Node, Row, Transition } from "./types.ts";

const CONFIGURATIONS_AHEAD = 96;
const MOVES_AHEAD = 1024;
const COMBINATIONS_MAX = 16;

/** Makes the tables of a machine, and of the machines that it may invoke, so that sessions share them. */
export function prepare(machine: unknown): void {
  prepareAll(machine, new Set());
}

function prepareAll(logic: unknown, seen: Set<unknown>): void {
  if (seen.has(logic) || !(logic instanceof StateMachine)) return;
  seen.add(logic);
  const machine = logic as unknown as Machine;
  const program = programOf(machine);
  if (!program) return;
  let moves = 0;
  const { configurations, descriptors } = program;
  for (const configuration of configurations.values()) {
    // grows meanwhile
    if (configurations.size > CONFIGURATIONS_AHEAD || moves > MOVES_AHEAD) break;
    for (const list of configuration.always ?? [])
      for (const transition of list) moves += foresee(configuration, [transition], null, 0);
    for (const descriptor of descriptors) {
      const row = rowOf(configuration, descriptor);
      configuration.rows.set(descriptor, row);
      row.list.forEach((transition, i) => {
        moves += foresee(configuration, [transition], row, i);
      });
      for (const taken of combinations(row.regions))
        moves += foresee(configuration, taken, null, 0);
    }
  }
  const visit = (node: Node): void => {
    for (const invoked of [node.config.invoke ?? []].flat())
      prepareAll((invoked as { src: unknown }).src, seen);
    for (const child of Object.values(node.states)) visit(child);
  };
  visit(machine.root);
  for (const actor of Object.values(machine.implementations.actors)) prepareAll(actor, seen);
}

function foresee(
  configuration: Configuration,
  taken: Transition[],
  row: Row | null,
  at: number,
): number {
  const key = keyOf(configuration.program, taken);
  let move = configuration.moves.get(key);
  try {
    if (!move) {
      const made = moveOf(configuration, taken, {}, false);
      if (made.historic || made.move.fails || !made.move.to.kept) return 1;
      keepMove(configuration, key, (move = made.move));
    }
    if (row && !move.historic) row.moves[at] = move;
  } catch {
    // These are never taken together, or XState will say what is wrong with them.
  }
  return 1;
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

// Stands behind `transition` and `getInitialSnapshot` of all machines of the session's own actor system.
//
// Other systems (those that a machine makes itself, pure functions like `getNextSnapshot`) and systems that are inspected get
// XState's own.

import { StateMachine } from "xstate";
import { noteCause, turn } from "../turn.ts";
import { adopt, quiet } from "./system.ts";
import { adopted, programOf } from "./tables.ts";
import { initialSnapshot, transition } from "./transition.ts";
import { CONFIGURATION, type Event, type Machine, type Scope, type Snapshot } from "./types.ts";

const own = StateMachine.prototype as unknown as {
  transition(this: Machine, snapshot: Snapshot, event: Event, scope: Scope | undefined): Snapshot;
  getInitialSnapshot(this: Machine, scope: Scope | undefined, input: unknown): Snapshot;
  getTransitionData(this: Machine, snapshot: Snapshot, event: Event): unknown[];
};
/* eslint-disable @typescript-eslint/unbound-method -- called with a machine of the caller's */
const {
  transition: itsTransition,
  getInitialSnapshot: itsInitialSnapshot,
  getTransitionData: itsTransitionData,
} = own;
/* eslint-enable @typescript-eslint/unbound-method */

/** In tests: whatever could be run from tables and is not, is an error. */
let strict = false;

export function beStrict(): void {
  strict = true;
}

function notFromTables(what: string): void {
  if (strict) throw new Error(`${what} was left to XState`);
}

/** Before the machine is loaded: its constructor binds what stands in the prototype then. */
export function installTransitions(): void {
  own.transition = function (snapshot, event, scope) {
    if (
      scope === undefined ||
      quiet === null ||
      scope.system !== quiet ||
      snapshot.status !== "active" ||
      snapshot.machine !== this ||
      typeof event.type !== "string" ||
      event.type === "xstate.init"
    ) {
      return itsTransition.call(this, snapshot, event, scope);
    }
    const nodes = snapshot._nodes;
    const configuration = nodes[CONFIGURATION] ?? adopted(this, nodes);
    if (configuration) return transition(configuration, snapshot, event, scope);
    notFromTables(`a transition of ${this.id}`);
    return itsTransition.call(this, snapshot, event, scope);
  };
  // XState's own transitions ask this, too: whether the event that somebody sent was taken.
  own.getTransitionData = function (snapshot, event) {
    const found = itsTransitionData.call(this, snapshot, event);
    if (turn.event === null) noteCause(event.type);
    else if (event === turn.event && found.length) turn.taken = true;
    return found;
  };
  own.getInitialSnapshot = function (scope, input) {
    if (scope?.self) adopt(scope);
    if (scope === undefined || quiet === null || scope.system !== quiet)
      return itsInitialSnapshot.call(this, scope, input);
    const program = programOf(this);
    if (program) return initialSnapshot(program, scope, input);
    notFromTables(`the start of ${this.id}`);
    return itsInitialSnapshot.call(this, scope, input);
  };
}

// Loading a bundle: which export is the machine, and what pages and types need to know of it.

import { StateMachine, type AnyStateMachine, type AnyStateNode } from "xstate";
import { dropRequests } from "./effects.ts";
import { RULES, type Rules } from "./judge.ts";
import { missingOf } from "./missing.ts";
import { requireModule } from "./modules.ts";
import * as safe from "./intrinsics.ts";
import { dropTimers } from "./timers.ts";
import { describe, faultText, type Limits } from "./turn.ts";

type Json = null | boolean | number | string | Json[] | { [key: string]: Json | undefined };

const CONTEXT_CHARS_MAX = 16_384;

export interface Loaded {
  machine: AnyStateMachine | null;
  rules: Rules;
  report: string;
}

const isMachine = (value: unknown): value is AnyStateMachine => value instanceof StateMachine;

/** The wrapper that the forge puts around the bundle. */
export interface Bundle {
  (
    module: { exports: Record<string, unknown> },
    exports: unknown,
    require: (name: string) => unknown,
  ): void;
  /** What an action that throws does: "stop" ends the session in an error, anything else undoes the turn. */
  onError?: string;
  /** "library": transitions are XState's own, not those of prelude/transitions. */
  transitions?: string;
  /** For tests: what could be run from tables and is not, is an error. */
  strict?: boolean;
  /** Limits that are not the usual ones. */
  limits?: Partial<Limits>;
}

/** Runs the bundle and finds the machine in its exports. Never throws: the report is JSON for the forge. */
export function loadBundle(bundle: Bundle): Loaded {
  const module = { exports: {} as Record<string, unknown> };
  try {
    bundle(module, module.exports, requireModule);
    return findMachine(module.exports);
  } catch (error) {
    return refused(failure("machine_throws", describe(error)));
  }
}

const refused = (report: string): Loaded => ({ machine: null, rules: {}, report });

function findMachine(exports: Record<string, unknown>): Loaded {
  // `module.exports = createMachine(...)`, of CommonJS.
  if (isMachine(exports)) exports = { default: exports };
  const names = safe.keysOf(exports);
  const machines = names.filter((name) => isMachine(exports[name]));
  const chosen = isMachine(exports["default"])
    ? "default"
    : isMachine(exports["machine"])
      ? "machine"
      : machines.length === 1
        ? machines[0]
        : undefined;
  if (chosen === undefined) {
    const found = names.length ? `exports found: ${names.join(", ")}` : "the file exports nothing";
    return refused(
      machines.length
        ? failure("several_machines", {
            message: `several machines are exported (${machines.join(", ")}); make one the default export or name it "machine"`,
          })
        : failure("no_machine", {
            message: `no XState machine is exported; ${found}${hintOf(exports["default"])}`,
          }),
    );
  }
  const machine = exports[chosen] as AnyStateMachine;
  const dropped = dropTimers();
  const warnings = dropped
    ? [
        `${dropped} timers that were set while the file was loaded never fire; set them in an action or an actor`,
      ]
    : [];
  const asked = dropRequests();
  if (asked)
    warnings.push(
      `${asked} requests that were made while the file was loaded are never sent; fetch in an actor`,
    );
  const rules = rulesOf(exports, warnings);
  return {
    machine,
    rules,
    report: safe.wellFormed(
      safe.stringify({
        ok: true,
        definition: definitionOf(machine),
        rules: safe.keysOf(rules),
        warnings,
        missing: missingOf(machine) as unknown as Json,
      }) as string,
    ),
  };
}

/** `access`, `view` and `viewEmitted`, where the file exports them. */
function rulesOf(exports: Record<string, unknown>, warnings: string[]): Rules {
  const found: Rules = {};
  for (const name of RULES) {
    const exported = safe.hasOwn(exports, name) ? exports[name] : undefined;
    if (typeof exported === "function") found[name] = exported as (given: unknown) => unknown;
    else if (exported !== undefined)
      warnings.push(`what is exported as ${name} is no function, and decides nothing`);
  }
  if (found.viewEmitted && !found.view)
    warnings.push("viewEmitted is asked where there is a view: everybody hears what is emitted");
  return found;
}

function hintOf(exported: unknown): string {
  if (typeof exported === "function") return " (a function: call it, and export what it makes)";
  if (typeof exported === "object" && exported !== null)
    return " (an object: give it to createMachine, and export what that makes)";
  return "";
}

function failure(code: string, error: { message: string; name?: string; at?: string }): string {
  const message =
    error.name && error.name !== "Error" ? `${error.name}: ${error.message}` : error.message;
  return `{"ok":false,"fault":${faultText(error.at === undefined ? { code, message } : { code, message, at: error.at })}}`;
}

/** The machine as JSON: states, transitions, events, delays, invokes, tags, descriptions. No code. */
function definitionOf(machine: AnyStateMachine): Json {
  const events = new Set<string>();
  const root = nodeOf(machine.root, events);
  return {
    id: machine.id,
    description: machine.root.description,
    events: [...events].sort(),
    context: initialContext(machine),
    root,
  };
}

/** What every session begins with, where that depends on nothing. */
function initialContext(machine: AnyStateMachine): Json | undefined {
  const context: unknown = (machine.config as { context?: unknown }).context;
  if (typeof context !== "object") return undefined;
  try {
    const text = safe.stringify(context);
    return text !== undefined && text.length <= CONTEXT_CHARS_MAX
      ? (safe.parse(text) as Json)
      : undefined;
  } catch {
    return undefined; // no JSON: the first session will say so
  }
}

/** What XState's types call always there, and is not in a machine of one state. */
type Initial = { readonly target?: readonly ({ readonly id: string } | undefined)[] } | undefined;

function nodeOf(node: AnyStateNode, events: Set<string>): { [key: string]: Json | undefined } {
  const transitions: Json[] = [];
  for (const [descriptor, list] of node.transitions) {
    for (const transition of list) transitions.push(transitionOf(descriptor, transition, events));
  }
  for (const transition of node.always ?? [])
    transitions.push({ ...transitionOf("", transition, events), kind: "always" });
  const states: { [key: string]: Json } = {};
  for (const [key, child] of Object.entries(node.states))
    states[key] = nodeOf(child as AnyStateNode, events);
  return prune({
    id: node.id,
    key: node.key,
    type: node.type,
    description: node.description,
    initial: node.type === "compound" ? (node.initial as Initial)?.target?.[0]?.id : undefined,
    // eslint-disable-next-line @typescript-eslint/no-unnecessary-type-conversion -- what XState's types say is not what a machine may give
    history: node.history ? String(node.history) : undefined,
    tags: node.tags,
    meta: jsonOf(node.meta),
    entry: node.entry.map(nameOf),
    exit: node.exit.map(nameOf),
    invoke: node.invoke.map((invoke) =>
      prune({
        id: invoke.id,
        src: typeof invoke.src === "string" ? sourceOf(invoke.src) : nameOf(invoke.src),
        systemId: invoke.systemId,
      }),
    ),
    transitions,
    states,
  });
}

function transitionOf(
  descriptor: string,
  transition: AnyStateNode["always"] extends (infer T)[] | undefined ? T : never,
  events: Set<string>,
): { [key: string]: Json | undefined } {
  const after = /^xstate\.after\.(.*?)\.(?=[^.]|$)/.exec(descriptor);
  const internal = descriptor.startsWith("xstate.") && descriptor !== "xstate.route"; // which clients send
  if (!internal && descriptor) events.add(descriptor);
  return prune({
    event: descriptor,
    kind: after ? "after" : internal ? kindOf(descriptor) : "event",
    delay: after ? delayOf(after[1] as string) : undefined,
    delayMs: after ? knownDelay(transition.source, after[1] as string) : undefined,
    targets: transition.target?.map((target) => target.id),
    guard: transition.guard === undefined ? undefined : nameOf(transition.guard),
    actions: transition.actions.map(nameOf),
    reenter: transition.reenter || undefined,
    description: transition.description,
  });
}

/** Of XState's own events, without the id in them, which may have dots: done.actor, error.actor, done.state, snapshot. */
const kindOf = (descriptor: string): string =>
  /^xstate\.((?:done|error)\.(?:actor|state)|snapshot)(?=\.)/.exec(descriptor)?.[1] ??
  descriptor.slice("xstate.".length);

/** How long a delay with a name is, where that is a number rather than computed. */
function knownDelay(source: AnyStateNode, name: string): Json | undefined {
  const delays = source.machine.implementations.delays as Record<string, unknown>;
  const delay = safe.hasOwn(delays, name) ? delays[name] : undefined;
  return typeof delay === "number" ? delay : undefined;
}

const delayOf = (text: string): Json => (/^\d+$/.test(text) ? Number(text) : text);
const sourceOf = (name: string): string => (name.startsWith("xstate.invoke.") ? "inline" : name);

/** What to call an action, guard or actor in a diagram. */
function nameOf(part: unknown): string {
  if (typeof part === "string") return part;
  const named = part as { type?: unknown; name?: unknown; config?: { id?: unknown } } | null;
  for (const name of [named?.type, named?.config?.id, named?.name])
    if (typeof name === "string" && name) return name;
  return "inline";
}

function jsonOf(value: unknown): Json | undefined {
  const text = safe.stringify(value);
  return text === undefined ? undefined : (safe.parse(text) as Json);
}

/** Drops what is absent or empty, so that a definition shows only what the machine says. */
function prune(record: { [key: string]: Json | undefined }): { [key: string]: Json | undefined } {
  for (const [key, value] of Object.entries(record)) {
    const empty =
      value === undefined ||
      (value === "" && key !== "event") ||
      (Array.isArray(value) && !value.length && key !== "targets") ||
      (typeof value === "object" &&
        value !== null &&
        !Array.isArray(value) &&
        !Object.keys(value).length);
    // eslint-disable-next-line @typescript-eslint/no-dynamic-delete -- a plain record of our own
    if (empty) delete record[key];
  }
  return record;
}

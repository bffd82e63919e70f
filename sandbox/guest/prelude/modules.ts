// The modules that a machine may import: the baked XState, under all its entry points. Node's own are not there, and say so when
// something of them is used: packages import them for what a machine may never come to.

import * as xstate from "xstate";
import * as actions from "xstate/actions";
import * as actors from "xstate/actors";
import * as graph from "xstate/graph";
import * as guards from "xstate/guards";
import * as safe from "./intrinsics.ts";

const module = (namespace: object): object =>
  Object.defineProperty({ ...namespace }, "__esModule", { value: true });

const modules: Record<string, object> = {
  xstate: module(xstate),
  "xstate/actions": module(actions),
  "xstate/actors": module(actors),
  "xstate/graph": module(graph),
  "xstate/guards": module(guards),
};

/** The `require` of a bundle, in which the bundler (sandbox/bundler.py) left nothing else to import. */
export function requireModule(name: string): unknown {
  if (safe.hasOwn(modules, name)) return modules[name];
  if (safe.startsWith(name, "node:")) return absent(name);
  throw new Error(`Cannot import "${name}": only xstate and what is uploaded can be imported`);
}

/** What bundlers and module systems ask of every module, and no author wrote. */
const ASKED = ["__esModule", "then", "toJSON"];

/** A module of which nothing can be used. Its properties are its prototype's, since bundlers copy a module's own. */
function absent(name: string): object {
  const refuse = (_: object, key: string | symbol): undefined => {
    if (typeof key === "symbol" || ASKED.includes(key)) return undefined;
    throw new Error(`${name} is not in machines, and ${key} of it is used`);
  };
  const prototype = new Proxy({}, { get: refuse });
  return new Proxy({}, { get: refuse, getPrototypeOf: () => prototype });
}

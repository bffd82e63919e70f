// The modules that a machine may import: the baked XState, under all its entry points.

import * as xstate from "xstate";
import * as actions from "xstate/actions";
import * as actors from "xstate/actors";
import * as graph from "xstate/graph";
import * as guards from "xstate/guards";

const module = (namespace: object): object =>
  Object.defineProperty({ ...namespace }, "__esModule", { value: true });

export const modules: Record<string, object> = {
  xstate: module(xstate),
  "xstate/actions": module(actions),
  "xstate/actors": module(actors),
  "xstate/graph": module(graph),
  "xstate/guards": module(guards),
};

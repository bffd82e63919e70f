// XState as the guest is built with it.
//
// prelude/transitions/ computes with XState's own functions, which its module keeps to itself: it is given more exports here.
// It also takes the place of some of them. Those were rewritten by hand, so their digests stand in xstate.json: when XState
// changes one, the build fails until somebody has looked at both (`node build/xstate.mjs` prints the digests of today).

import { createHash } from "node:crypto";
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(dirname(fileURLToPath(import.meta.url)));
const dist = join(here, "node_modules", "xstate", "dist");

const USED = ["computeEntrySet", "computeExitSet", "createDoneStateEvent", "createMachineSnapshot", "evaluateGuard",
  "getCandidates", "getHistoryNodes", "getInitialStateNodes", "getProperAncestors", "getStateNode", "isAtomicStateNode",
  "isDescendant", "isInFinalState", "matchesEventDescriptor", "removeConflictingTransitions", "resolveOutput"];

/** What was rewritten: the functions, by the beginning of the file that they stand in. */
const REWRITTEN = {
  raise: ["Actor", "macrostep", "initialMicrostep", "microstep", "enterStates", "exitStates", "getMachineOutput", "stopChildren",
    "resolveActionsAndContext", "resolveAndExecuteActionsWithContext", "evaluateGuard", "selectTransitions",
    "selectEventlessTransitions", "areStateNodeCollectionsEqual", "transitionNode", "transitionAtomicNode",
    "transitionCompoundNode", "transitionParallelNode", "cloneMachineSnapshot", "createMachineSnapshot", "resolveRaise",
    "executeRaise", "resolveSpawn", "resolveStop", "resolveCancel"],
  assign: ["createSpawner", "resolveAssign"],
  log: ["resolveEmit", "resolveSendTo", "resolveLog", "resolveEnqueueActions"],
  StateMachine: ["StateNode", "StateMachine"],
};

function file(name) {
  const found = readdirSync(dist).filter((each) => new RegExp(`^${name}-[0-9a-f]+\\.esm\\.js$`).test(each));
  if (found.length !== 1) throw new Error(`XState has ${found.length} files ${name}-*.esm.js`);
  return join(dist, found[0]);
}

/** The text of a function or class that stands at the top of a module. */
function textOf(source, name) {
  const found = new RegExp(`^(?:function|class) ${name}\\b[\\s\\S]*?^}$`, "m").exec(source);
  if (!found) throw new Error(`XState has no ${name} any more`);
  return found[0];
}

function digests() {
  const all = {};
  for (const [name, functions] of Object.entries(REWRITTEN)) {
    const source = readFileSync(file(name), "utf8");
    for (const each of functions) all[each] = createHash("sha256").update(textOf(source, each)).digest("hex").slice(0, 32);
  }
  return all;
}

export const xstate = {
  name: "xstate",
  setup(build) {
    const pinned = JSON.parse(readFileSync(join(here, "build", "xstate.json"), "utf8"));
    for (const [name, digest] of Object.entries(digests()))
      if (pinned[name] !== digest) throw new Error(`XState's ${name} is not the one that prelude/transitions was written after`);
    build.onResolve({ filter: /^xstate\/internals$/ }, () => ({ path: file("raise") }));
    build.onLoad({ filter: /raise-[0-9a-f]+\.esm\.js$/ }, ({ path }) => {
      const source = readFileSync(path, "utf8");
      for (const name of USED) textOf(source, name);
      return { contents: `${source}\nexport { ${USED.join(", ")} };\n`, loader: "js" };
    });
  },
};

if (process.argv[1] === fileURLToPath(import.meta.url)) console.log(JSON.stringify(digests(), null, 2));

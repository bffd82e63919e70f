// Compares XState's own transitions with those of prelude/transitions on random machines.
//
//   node compare.mjs FIRST COUNT [FILE OLD NEW]
//
// Prints the first difference as JSON, or {"machines", "refused", "steps", "active"}. FILE OLD NEW changes a source first: a mutant.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const guest = join(here, "..", "..", "..", "sandbox", "guest");
const require = createRequire(join(guest, "package.json"));
const { build } = require("esbuild");
const { xstate: plugin } = await import(join(guest, "build", "xstate.mjs"));
const { generate } = createRequire(import.meta.url)("./machines.cjs");

const [first, count, file, old, changed] = process.argv.slice(2);

const entry = `
export * as xstate from "xstate";
import { prepare } from "./transitions/ahead.ts";
import { beStrict, installTransitions } from "./transitions/install.ts";
import * as system from "./transitions/system.ts";
installTransitions();
beStrict();
export { prepare, system };
`;
const mutant = {
  name: "mutant",
  setup(built) {
    if (!file) return;
    built.onLoad({ filter: new RegExp(`transitions/${file}\\.ts$`) }, ({ path }) => {
      const source = readFileSync(path, "utf8");
      if (!source.includes(old)) throw new Error(`${file} has no ${old}`);
      return { contents: source.replace(old, () => changed), loader: "ts" };
    });
  },
};
const { outputFiles } = await build({
  // From the guest's folder: the machines must be of the XState that the transitions stand in.
  stdin: { contents: entry, resolveDir: join(guest, "prelude"), loader: "ts" },
  bundle: true,
  format: "cjs",
  platform: "node",
  write: false,
  logLevel: "error",
  plugins: [mutant, plugin],
});
const module = { exports: {} };
new Function("module", "exports", "require", outputFiles[0].text)(module, module.exports, require);
const { xstate, system, prepare } = module.exports;
process.on("unhandledRejection", () => {});

async function play(seed, compiled) {
  const { machine, events, trace, brief, input } = generate(xstate, seed);
  if (compiled && seed % 4) prepare(machine);
  let drawn = 0;
  Math.random = () => (++drawn * 0.6180339887) % 1; // names of timers without one
  const clock = new xstate.SimulatedClock();
  system.forgetSystem();
  if (compiled) system.expectRoot();
  const said = [];
  const actor = xstate.createActor(machine, {
    clock,
    input,
    logger: (...parts) => trace.push("log " + parts.join(" ")),
  });
  if (compiled !== (system.quiet === actor.system)) throw new Error("the wrong way");
  const objects = [];
  const number = (snapshot) => {
    if (!objects.includes(snapshot)) objects.push(snapshot);
    return objects.indexOf(snapshot);
  };
  const look = (label) => {
    const snapshot = actor.getSnapshot();
    const children = Object.entries(snapshot.children ?? {}).map(([id, child]) => [
      id,
      child && brief(child.getSnapshot()),
    ]);
    const kept = actor.system.getSnapshot()._scheduledEvents ?? {};
    said.push([
      label,
      brief(snapshot),
      String(snapshot.error ?? ""),
      number(snapshot),
      number(snapshot.context),
      JSON.stringify(children),
      Object.keys(kept)
        .map((id) => id.replace(/x:\d+/g, "x"))
        .sort()
        .join(),
      EVENTS_CAN.map((type) => {
        try {
          return snapshot.can?.({ type }) ? 1 : 0;
        } catch (error) {
          return "!";
        }
      }).join(""),
      JSON.stringify(snapshot.getMeta?.() ?? null),
      trace.splice(0).join("\n"),
    ]);
  };
  actor.subscribe({
    next: (snapshot) => trace.push("next " + number(snapshot)),
    error: (error) => trace.push("error " + error?.message),
    complete: () => trace.push("complete"),
  });
  actor.on("*", (event) => trace.push("emitted " + JSON.stringify(event)));
  try {
    actor.start();
  } catch (error) {
    said.push(["thrown", String(error)]);
  }
  await settle();
  look("start");
  for (const event of events) {
    try {
      if ("wait" in event) clock.increment(event.wait);
      else actor.send(event);
    } catch (error) {
      trace.push("thrown " + error.message);
    }
    await settle();
    look(JSON.stringify(event));
  }
  actor.stop();
  look("stopped");
  return said;
}
const EVENTS_CAN = ["A", "B", "go.left"];
async function settle() {
  for (let i = 0; i < 8; i++) await null;
}

let found = null;
let refused = 0;
let total = 0;
let active = 0; // steps after which the machine still ran
for (let seed = Number(first); !found && seed < Number(first) + Number(count); seed++) {
  let theirs, ours, refusal;
  try {
    theirs = await play(seed, false);
  } catch (error) {
    refusal = String(error);
  }
  try {
    ours = await play(seed, true);
  } catch (error) {
    if (String(error) === refusal) {
      refused++;
      continue;
    }
    ours = [["refused", String(error)]];
  }
  theirs ??= [["refused", refusal]];
  for (let i = 0; i < Math.max(theirs.length, ours.length); i++) {
    total++;
    if (theirs[i]?.[1]?.includes('"active"')) active++;
    const [a, b] = [JSON.stringify(theirs[i]), JSON.stringify(ours[i])];
    if (a !== b) {
      found = { seed, step: i, library: theirs[i], tables: ours[i] };
      break;
    }
  }
}
process.exitCode = found ? 1 : 0;
console.log(
  found
    ? JSON.stringify(found, null, 1)
    : JSON.stringify({ machines: Number(count), refused, steps: total, active }),
);

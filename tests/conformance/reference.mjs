// Plays every case on real XState in Node and prints, as JSON, what there is to see after every step.
//
// Time is played too: timers wait in a list, and a step of { wait } fires them in order of due time, as the hub does.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { cases, examples } from "./cases.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "..", "..");
const guest = join(root, "sandbox", "guest");
const { build } = createRequire(join(guest, "package.json"))("esbuild");
const realImmediate = setImmediate;
const settle = async () => { for (let i = 0; i < 4; i++) await new Promise((done) => realImmediate(done)); };

let now = 1_700_000_000_000;
let ids = 0;
const timers = new Map();
const add = (repeat) => (run, delay = 0, ...args) => {
  const wait = delay > 0 ? Math.ceil(delay) : 0;
  timers.set(++ids, { run, args, due: now + wait, order: ids, every: repeat ? Math.max(wait, 1) : null });
  return ids;
};
globalThis.setTimeout = add(false);
globalThis.setInterval = add(true);
globalThis.clearTimeout = globalThis.clearInterval = (id) => void timers.delete(id);
Date.now = () => now;
console.log = console.warn = console.error = console.info = () => {};

async function pass(ms) {
  const end = now + ms;
  for (;;) {
    const due = [...timers].filter(([, timer]) => timer.due <= end).sort(([, a], [, b]) => a.due - b.due || a.order - b.order)[0];
    if (!due) break;
    const [id, timer] = due;
    now = timer.due;
    if (timer.every === null) timers.delete(id);
    else { timer.due = now + timer.every; timer.order = ++ids; }
    timer.run(...timer.args);
    await settle();
  }
  now = end;
}

async function load(source, loader) {
  const { outputFiles } = await build({ stdin: { contents: source, loader, resolveDir: guest }, bundle: true, format: "esm", platform: "neutral", mainFields: ["module"], write: false, logLevel: "silent" });
  return import(`data:text/javascript;base64,${Buffer.from(outputFiles[0].text).toString("base64")}`);
}

async function play(source, loader, script) {
  timers.clear();
  now = 1_700_000_000_000;
  const { createActor, default: exported, machine: named } = await load(`${source}\nexport { createActor } from "xstate";`, loader);
  const machine = exported ?? named;
  const steps = [...script];
  const input = steps[0]?.input !== undefined ? steps.shift().input : undefined;
  const actor = createActor(machine, { input });
  const emitted = [];
  actor.on("*", (event) => emitted.push(event));
  actor.subscribe({ error() {} });
  actor.start();
  await settle();
  const here = new Set();
  const hears = machine.events.some((event) => event.startsWith("presence."));
  const join = async (name) => {
    if (here.has(name)) return;
    here.add(name);
    if (hears) { actor.send({ type: "presence.joined", count: here.size, sender: { id: name } }); await settle(); }
  };
  await join("alice");
  const seen = [];
  const look = () => {
    const { value, context, status, tags, output } = actor.getSnapshot();
    seen.push(JSON.parse(JSON.stringify({ value, context, status, tags: tags && [...tags], output, emitted: emitted.splice(0) })));
  };
  look();
  for (const step of steps) {
    if (step.wait !== undefined) await pass(step.wait);
    else {
      const { as = "alice", ...event } = typeof step === "string" ? { type: step } : step;
      await join(as);
      actor.send({ ...event, sender: { id: as } });
      await settle();
    }
    look();
  }
  actor.stop();
  return seen;
}

const results = [];
for (const [name, expression, script] of cases) {
  const source = `import * as xstate from "xstate";\nconst { ${Object.keys(await import(join(guest, "node_modules/xstate/dist/xstate.esm.js"))).join(", ")} } = xstate;\nexport default ${expression};`;
  results.push({ name, entry: "machine.js", source, script, seen: await play(source, "js", script) });
}
for (const [entry, script] of Object.entries(examples)) {
  const source = readFileSync(join(root, "examples", entry), "utf8");
  results.push({ name: entry, entry, source, script, seen: await play(source, "ts", script) });
}
process.stdout.write(JSON.stringify(results));

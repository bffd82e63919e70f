// Splits dist/quickjs.wasm, which sandbox/guest/engine compiles, into two modules.
//
//   dist/engine.wasm   the code: imports one memory ("image" "memory"), exports what glue.c exports, and nothing else
//   dist/genesis.wasm  the data: a memory with QuickJS's own data segments, the first image of all
//
// The split is what makes sessions cheap: all images share one compiled engine, and an image is data that the runtime
// maps copy-on-write. Decided on the text form, line by line, since wasm-dis prints one top-level field a line.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(dirname(fileURLToPath(import.meta.url)));
const bin = (name) => join(here, "node_modules", ".bin", name);
const features = ["--mvp-features", "--enable-sign-ext", "--enable-nontrapping-float-to-int",
  "--enable-mutable-globals"];

const work = mkdtempSync(join(tmpdir(), "machinehub-engine-"));
const dist = join(here, "dist");

try {
  execFileSync(bin("wasm-dis"), [join(dist, "quickjs.wasm"), "-o", join(work, "quickjs.wat")]);
  const { engine, genesis } = split(readFileSync(join(work, "quickjs.wat"), "utf8"));
  // wasm-opt inlines the functions of state.s, which C's compiler cannot.
  for (const [name, text, options] of [["engine", engine, ["-O3"]], ["genesis", genesis, []]]) {
    writeFileSync(join(work, `${name}.wat`), text);
    execFileSync(bin("wasm-opt"), [...features, ...options, join(work, `${name}.wat`), "-o", join(dist, `${name}.wasm`)]);
    const digest = createHash("sha256").update(readFileSync(join(dist, `${name}.wasm`))).digest("hex");
    console.log(`${name}.wasm ${digest.slice(0, 16)}`);
  }
} finally {
  rmSync(work, { recursive: true, force: true });
}

/** Splits the disassembled QuickJS into the text of the engine and of the genesis image. */
function split(wat) {
  const code = [];
  const data = [];
  let memory = "";
  for (const line of wat.split("\n")) {
    if (line.startsWith(" (import ")) throw new Error(`the engine must import nothing: ${line}`);
    // The watchdog could not end these (engine/runtime.c).
    if (/\(memory\.(copy|fill)\b/.test(line)) throw new Error(`unexpected instruction: ${line.trim()}`);
    if (line.startsWith(" (memory ")) {
      const pages = /^ \(memory \$0 (\d+)\)/.exec(line);
      if (!pages) throw new Error(`unexpected memory: ${line}`);
      memory = pages[1];
    } else if (line.startsWith(" (data ")) {
      if (!/^ \(data \$\d+ \(i32\.const /.test(line)) throw new Error(`unexpected data segment: ${line.slice(0, 80)}`);
      data.push(line);
    } else if (!/^ \(export "(memory|_initialize)" /.test(line)) code.push(line);
  }
  // Imports stand before everything but types, so the memory goes right behind the opening bracket.
  return {
    engine: code.join("\n").replace(/^\(module\n/, `(module\n (import "image" "memory" (memory $0 ${memory}))\n`),
    genesis: `(module\n (memory $0 (export "memory") ${memory})\n${data.join("\n")}\n)\n`,
  };
}

// Rewrites quickjs.wasm into two modules.
//
//   dist/engine.wasm   the code: imports one memory ("image" "memory"), exports what glue.wat exports, and nothing else
//   dist/genesis.wasm  the data: a memory with QuickJS's own data segments, the first image of all
//
// The split is what makes sessions cheap: all images share one compiled engine, and an image is data that the runtime
// maps copy-on-write. Decided on the text form, line by line, since wasm-dis prints one top-level field a line.

import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(dirname(fileURLToPath(import.meta.url)));
const bin = (name) => join(here, "node_modules", ".bin", name);
const features = ["--mvp-features", "--enable-sign-ext", "--enable-nontrapping-float-to-int",
  "--enable-mutable-globals", "--enable-multivalue", "--enable-reference-types"];

const work = mkdtempSync(join(tmpdir(), "machinehub-engine-"));
const dist = join(here, "dist");
mkdirSync(dist, { recursive: true });

try {
  const source = join(here, "node_modules", "quickjs-wasi", "quickjs.wasm");
  execFileSync(bin("wasm-dis"), [source, "-o", join(work, "quickjs.wat")]);
  const { engine, genesis } = split(readFileSync(join(work, "quickjs.wat"), "utf8"),
    readFileSync(join(here, "engine", "glue.wat"), "utf8"));
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
function split(wat, glue) {
  const names = new Map(); // what QuickJS calls it -> what the disassembly calls it
  const code = [];
  const data = [];
  let memory = "";
  for (const line of wat.split("\n")) {
    const imported = /^ \(import "[^"]*" "([^"]*)" \(func (\$[^ ]+)/.exec(line);
    const exported = /^ \(export "([^"]*)" \(func (\$[^)]+)\)/.exec(line);
    if (imported) names.set(imported[2], `$${imported[1]}`);
    else if (exported) names.set(`$${exported[1]}`, exported[2]);
    else if (line.startsWith(" (export ")) continue;
    else if (line.startsWith(" (memory ")) {
      const pages = /^ \(memory \$0 (\d+)\)/.exec(line);
      if (!pages) throw new Error(`unexpected memory: ${line}`);
      memory = pages[1];
    } else if (line.startsWith(" (data ")) {
      if (!/^ \(data \$\d+ \(i32\.const /.test(line)) throw new Error(`unexpected data segment: ${line.slice(0, 80)}`);
      data.push(line);
    } else code.push(line);
  }
  const redirected = code.join("\n").replace(/\(memory\.(grow|copy|fill)/g, "(call $$$1");
  const withShim = redirected.replace(/\$fimport\$\d+/g, (name) => names.get(name));
  const withGlue = glue.replace(/^;;.*$/gm, "").replace(/\$(qjs_|wasm_|JS_|_initialize)\w*/g, (name) => {
    const inner = names.get(name);
    if (!inner) throw new Error(`quickjs.wasm does not export ${name}`);
    return inner;
  });
  // Imports stand before everything but types, so the memory goes right behind the opening bracket.
  const body = withShim.replace(/^\(module\n/, `(module\n (import "image" "memory" (memory $0 ${memory}))\n`);
  return {
    engine: body.replace(/\)\s*$/, `${withGlue}\n)\n`),
    genesis: `(module\n (memory $0 (export "memory") ${memory})\n${data.join("\n")}\n)\n`,
  };
}

// Bundles the prelude (with XState), and the polyfills, each into a script whose value is its exports.

import { build } from "esbuild";
import { copyFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { xstate } from "./xstate.mjs";

const here = dirname(dirname(fileURLToPath(import.meta.url)));

for (const [entry, outfile] of [["prelude/main.ts", "dist/prelude.js"], ["prelude/polyfills.ts", "dist/polyfills.js"]]) {
  await build({
    absWorkingDir: here, entryPoints: [entry], outfile,
    bundle: true, format: "cjs", platform: "neutral", target: "es2023", charset: "utf8", minify: true,
    mainFields: ["module", "main"], legalComments: "none", plugins: [xstate],
    banner: { js: "(function(){var module={exports:{}};" },
    footer: { js: "return module.exports})()" },
  });
}
copyFileSync(join(here, "node_modules", "@esbuild", "wasi-preview1", "esbuild.wasm"), join(here, "dist", "esbuild.wasm"));

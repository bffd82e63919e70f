// Builds dist/: the two entries for bundlers, with their types, and client.js, which a hub serves to pages that have no bundler.
import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const common = {
  absWorkingDir: here,
  bundle: true,
  format: "esm",
  target: "es2022",
  platform: "neutral",
  mainFields: ["module", "main"],
  legalComments: "none",
  logLevel: "warning",
};

rmSync(`${here}/dist`, { recursive: true, force: true });
await build({
  ...common,
  entryPoints: { index: "src/index.ts" },
  outdir: "dist",
  external: ["partysocket"],
});
await build({
  ...common,
  entryPoints: { react: "src/react.ts" },
  outdir: "dist",
  external: ["react", "partysocket"],
  // One copy of the store, whichever entry an app imports first.
  plugins: [
    {
      name: "entry",
      setup: ({ onResolve }) =>
        onResolve({ filter: /^\.\/index\.ts$/ }, () => ({ path: "./index.js", external: true })),
    },
  ],
});
await build({ ...common, entryPoints: { client: "src/index.ts" }, outdir: "dist", minify: true });
execFileSync("npx", ["tsc", "-p", "tsconfig.build.json"], { cwd: here, stdio: "inherit" });

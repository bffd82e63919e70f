// Builds the page into the hub's package: flat, under /assets/, with a gzipped twin of each file, so that the hub compresses nothing.
// Beside it go the client for pages without a bundler, and the client as an npm package.

import { execFileSync } from "node:child_process";
import { copyFileSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import react from "@vitejs/plugin-react";
import { defineConfig, type Plugin } from "vite";

const out = fileURLToPath(new URL("../../machinehub/web/static", import.meta.url));
const client = fileURLToPath(new URL("../js", import.meta.url));

const finish: Plugin = {
  name: "finish",
  closeBundle() {
    copyFileSync(`${client}/dist/client.js`, `${out}/client.js`);
    execFileSync("npm", ["pack", "--silent", "--pack-destination", out], { cwd: client });
    for (const name of readdirSync(out))
      if (/\.(js|css|html|svg)$/.test(name))
        writeFileSync(`${out}/${name}.gz`, gzipSync(readFileSync(`${out}/${name}`), { level: 9 }));
  },
};

export default defineConfig({
  base: "/assets/",
  // The page itself names its files from the site's root, and the hub puts its base path before that; scripts name others
  // relative to themselves.
  experimental: {
    renderBuiltUrl: (name, { hostType }) =>
      hostType === "html" ? `/assets/${name}` : { relative: true },
  },
  plugins: [react(), finish],
  build: {
    outDir: out,
    emptyOutDir: true,
    assetsDir: "",
    target: "es2022",
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 2_000,
  },
});

import { defineConfig } from "vitest/config";

// These bound a test that would hang; nothing is concluded from how long it takes.
export default defineConfig({ test: { testTimeout: 60_000, hookTimeout: 60_000 } });

// What machines are promised (docs/guest.md) and QuickJS lacks. Everything here runs before any user code.

import "core-js/actual/structured-clone.js";
import "core-js/actual/url/index.js";
import "core-js/actual/url-search-params/index.js";
import "core-js/actual/atob.js";
import "core-js/actual/btoa.js";
import "core-js/actual/queue-microtask.js";
// @ts-expect-error ships no types
import { TextDecoder, TextEncoder } from "fast-text-encoding";
// @ts-expect-error the module build ships no types
import { AbortController, AbortSignal } from "abort-controller/dist/abort-controller.mjs";
import { installLocale } from "./locale.ts";

/** `fetch` is data for the host in a later step; until then it answers what a denied egress rule answers. */
function fetch(): Promise<never> {
  return Promise.reject(new TypeError("fetch is not allowed by this machine's egress rules"));
}

declare global {
  interface ErrorConstructor {
    stackTraceLimit: number;
  }
}

// Shared memory has no one to share with here, the polyfills' store is nobody else's business, and XState's own frames must
// not crowd out the author's in a stack.
for (const name of ["SharedArrayBuffer", "Atomics", "__core-js_shared__"])
  Reflect.deleteProperty(globalThis, name);
Error.stackTraceLimit = 50;
installLocale();
const startedAt = Date.now;
const performance = { timeOrigin: 0, now: () => startedAt(), mark: () => {}, measure: () => {} };
for (const [name, value] of Object.entries({
  AbortController,
  AbortSignal,
  TextDecoder,
  TextEncoder,
  fetch,
  performance,
})) {
  Object.defineProperty(globalThis, name, {
    value,
    writable: true,
    configurable: true,
    enumerable: false,
  });
}

// What machines are promised (docs/guest.md) and QuickJS lacks. Everything here runs before any user code.

import "core-js/actual/structured-clone.js";
import "core-js/actual/url/index.js";
import "core-js/actual/url-search-params/index.js";
import "core-js/actual/atob.js";
import "core-js/actual/btoa.js";
import "core-js/actual/queue-microtask.js";
import { AbortController, AbortSignal } from "./fetch/abort.ts";
import { FormData } from "./fetch/form.ts";
import { Headers } from "./fetch/headers.ts";
import { fetch, Request, Response, secret } from "./fetch/index.ts";
import { TextDecoder, TextEncoder } from "./fetch/utf8.ts";
import { installLocale } from "./locale.ts";

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
  FormData,
  Headers,
  Request,
  Response,
  TextDecoder,
  TextEncoder,
  fetch,
  performance,
  secret,
})) {
  Object.defineProperty(globalThis, name, {
    value,
    writable: true,
    configurable: true,
    enumerable: false,
  });
}

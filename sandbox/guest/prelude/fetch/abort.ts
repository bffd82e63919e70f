// What `AbortController` and `AbortSignal` have got since the polyfill was written
// (https://dom.spec.whatwg.org/#interface-AbortSignal): reasons, and signals that abort by themselves.

import * as polyfill from "abort-controller/dist/abort-controller.mjs";

export interface Signal {
  readonly aborted: boolean;
  readonly reason?: Error;
  addEventListener(type: "abort", listener: () => void): void;
  removeEventListener(type: "abort", listener: () => void): void;
}
interface Controller {
  readonly signal: Signal;
  abort(reason?: unknown): void;
}

export const AbortController = polyfill.AbortController as new () => Controller;
export const AbortSignal = polyfill.AbortSignal as { prototype: Signal };
const abort = Reflect.get(AbortController.prototype as object, "abort") as Controller["abort"];
const { setTimeout } = globalThis as unknown as {
  setTimeout: (run: () => void, delay: number) => number;
};

export const named = (name: string, message: string): Error =>
  Object.defineProperty(new Error(message), "name", { value: name, configurable: true });

function hidden(target: object, members: Record<string, unknown>): void {
  for (const [name, value] of Object.entries(members))
    Object.defineProperty(target, name, { value, writable: true, configurable: true });
}

hidden(AbortController.prototype as object, {
  abort(this: Controller, reason?: unknown): void {
    if (!this.signal.aborted)
      hidden(this.signal, { reason: reason ?? named("AbortError", "it was taken back") });
    abort.call(this, reason);
  },
});
hidden(AbortSignal.prototype, {
  throwIfAborted(this: Signal): void {
    if (this.aborted) throw this.reason as Error;
  },
});

/** Aborts by itself: by a timer of the hub. */
function timeout(ms: number): Signal {
  const controller = new AbortController();
  setTimeout(() => controller.abort(named("TimeoutError", "it took too long")), ms);
  return controller.signal;
}

function aborted(reason?: unknown): Signal {
  const controller = new AbortController();
  controller.abort(reason);
  return controller.signal;
}

function any(signals: Iterable<Signal>): Signal {
  const controller = new AbortController();
  for (const signal of signals) {
    const follow = (): void => controller.abort(signal.reason);
    if (signal.aborted) follow();
    else signal.addEventListener("abort", follow);
  }
  return controller.signal;
}

hidden(AbortSignal, { timeout, abort: aborted, any });

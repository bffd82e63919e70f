// The built-ins that the prelude itself relies on, captured before a stranger's code can replace them.
//
// User code shares this realm. Whatever it does to `JSON`, `Map.prototype` or `Object.prototype` hurts its own session
// only, but the prelude's own words to the host (the outbox) stay well formed.

const { apply } = Reflect;
/** Makes `method.call(self, ...args)` callable without looking anything up later. */
function uncurry<Self, Args extends unknown[], Result>(
  method: (this: Self, ...args: Args) => Result,
) {
  return (self: Self, ...args: Args): Result => apply(method, self, args);
}

export const ceil = Math.ceil;
export const toNumber: (value: unknown) => number = Number;
export const defineProperty = Object.defineProperty;
export const hasOwn = Object.hasOwn;
export const parse: (text: string) => unknown = JSON.parse;
export const stringify: (value: unknown) => string | undefined = JSON.stringify;
export const now: () => number = Date.now;
export const toText: (value: unknown) => string = String;
export const keysOf = Object.keys;
export const slice = uncurry(String.prototype.slice);
export const mapGet = uncurry(
  Map.prototype.get as (this: Map<number, unknown>, key: number) => unknown,
);
export const mapSet = uncurry(
  Map.prototype.set as (this: Map<number, unknown>, key: number, value: unknown) => unknown,
);
export const mapDelete = uncurry(
  Map.prototype.delete as (this: Map<number, unknown>, key: number) => boolean,
);
export const startsWith = uncurry(String.prototype.startsWith);
export const exec = uncurry(RegExp.prototype.exec);
export const indexOf = uncurry(String.prototype.indexOf);
const charAt = uncurry(String.prototype.charAt);
export const setForEach = uncurry(
  Set.prototype.forEach as (this: Set<unknown>, each: (value: unknown) => void) => void,
);
export const isError = (value: unknown): value is Error => value instanceof ErrorClass;
const ErrorClass = Error;
/** Appends without consulting `Array.prototype`, which may carry a setter of the machine's making. */
export function append<T>(list: T[], item: T): void {
  defineProperty(list, list.length, {
    value: item,
    writable: true,
    enumerable: true,
    configurable: true,
    __proto__: null,
  } as PropertyDescriptor);
}

/**
 * JSON text without lone surrogates. `JSON.stringify` writes them as escapes, which other languages' parsers refuse; they
 * become U+FFFD, as they would in UTF-8.
 */
export function wellFormed(json: string): string {
  let at = indexOf(json, "\\ud");
  if (at < 0) return json;
  let text = "";
  let from = 0;
  for (at = indexOf(json, "\\"); at >= 0; at = indexOf(json, "\\", at)) {
    if (charAt(json, at + 1) !== "u") {
      at += 2;
      continue;
    }
    if (charAt(json, at + 2) === "d" && charAt(json, at + 3) >= "8") {
      text += slice(json, from, at) + "\\ufffd";
      from = at + 6;
    }
    at += 6;
  }
  return text + slice(json, from);
}

/** Joins JSON texts into the text of an array. */
export function arrayText(items: string[]): string {
  let text = "[";
  for (let i = 0; i < items.length; i++) text += i ? "," + items[i] : items[i];
  return text + "]";
}

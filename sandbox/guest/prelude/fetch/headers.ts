// `Headers` of the Fetch standard (https://fetch.spec.whatwg.org/#headers-class).

/** By which the pairs are had as they were appended: how they are sent. */
export const LIST = Symbol("list");

const NAME = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const NO_VALUE = /[\0\r\n]|[^\0-\xff]/;

export type HeadersInit =
  Headers | Iterable<readonly [string, string]> | Readonly<Record<string, string>>;

export class Headers {
  #list: [name: string, value: string][] = [];

  constructor(init?: HeadersInit | null) {
    if (init === undefined || init === null) return;
    if (typeof init !== "object") throw new TypeError("headers are an object, or pairs");
    const pairs = Symbol.iterator in init ? init : Object.entries(init);
    for (const pair of pairs as Iterable<readonly string[]>) {
      if (pair.length !== 2) throw new TypeError("a header is a name and a value");
      this.append(pair[0] as string, pair[1] as string);
    }
  }

  append(name: string, value: string): void {
    this.#list.push([nameOf(name), valueOf(value)]);
  }

  set(name: string, value: string): void {
    const known = nameOf(name);
    const text = valueOf(value);
    this.delete(known);
    this.#list.push([known, text]);
  }

  delete(name: string): void {
    const known = nameOf(name);
    this.#list = this.#list.filter((each) => each[0] !== known);
  }

  get(name: string): string | null {
    const known = nameOf(name);
    const found = this.#list.filter((each) => each[0] === known).map((each) => each[1]);
    return found.length ? found.join(", ") : null;
  }

  has(name: string): boolean {
    return this.get(name) !== null;
  }

  getSetCookie(): string[] {
    return this.#list.filter((each) => each[0] === "set-cookie").map((each) => each[1]);
  }

  get [LIST](): readonly (readonly [string, string])[] {
    return this.#list;
  }

  *entries(): IterableIterator<[string, string]> {
    const names = [...new Set(this.#list.map((each) => each[0]))].sort();
    for (const name of names) {
      if (name === "set-cookie") for (const each of this.getSetCookie()) yield [name, each];
      else yield [name, this.get(name) as string];
    }
  }

  *keys(): IterableIterator<string> {
    for (const [name] of this.entries()) yield name;
  }

  *values(): IterableIterator<string> {
    for (const [, value] of this.entries()) yield value;
  }

  [Symbol.iterator](): IterableIterator<[string, string]> {
    return this.entries();
  }

  forEach(each: (value: string, name: string, headers: Headers) => void, self?: unknown): void {
    for (const [name, value] of this.entries()) each.call(self, value, name, this);
  }

  get [Symbol.toStringTag](): string {
    return "Headers";
  }
}

function nameOf(name: unknown): string {
  const text = String(name);
  if (!NAME.test(text)) throw new TypeError(`a header cannot be called ${JSON.stringify(text)}`);
  return text.toLowerCase();
}

function valueOf(value: unknown): string {
  const text = String(value).replace(/^[\t\r\n ]+|[\t\r\n ]+$/g, "");
  if (NO_VALUE.test(text))
    throw new TypeError("a header's value has characters that none may have");
  return text;
}

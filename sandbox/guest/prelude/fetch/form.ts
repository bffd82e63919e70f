// `FormData` (https://xhr.spec.whatwg.org/#interface-formdata), of texts: a machine has no files.

export class FormData {
  #list: [name: string, value: string][] = [];

  append(name: unknown, value: unknown): void {
    this.#list.push([String(name), String(value)]);
  }

  set(name: unknown, value: unknown): void {
    const known = String(name);
    const at = this.#list.findIndex((each) => each[0] === known);
    this.#list = this.#list.filter((each, index) => each[0] !== known || index === at);
    if (at < 0) this.append(known, value);
    else this.#list[at] = [known, String(value)];
  }

  delete(name: unknown): void {
    this.#list = this.#list.filter((each) => each[0] !== String(name));
  }

  get(name: unknown): string | null {
    return this.#list.find((each) => each[0] === String(name))?.[1] ?? null;
  }

  getAll(name: unknown): string[] {
    return this.#list.filter((each) => each[0] === String(name)).map((each) => each[1]);
  }

  has(name: unknown): boolean {
    return this.get(name) !== null;
  }

  *entries(): IterableIterator<[string, string]> {
    for (const [name, value] of this.#list) yield [name, value];
  }

  *keys(): IterableIterator<string> {
    for (const [name] of this.#list) yield name;
  }

  *values(): IterableIterator<string> {
    for (const [, value] of this.#list) yield value;
  }

  [Symbol.iterator](): IterableIterator<[string, string]> {
    return this.entries();
  }

  forEach(each: (value: string, name: string, form: FormData) => void, self?: unknown): void {
    for (const [name, value] of this.#list) each.call(self, value, name, this);
  }

  get [Symbol.toStringTag](): string {
    return "FormData";
  }
}

/** RFC 7578: the text of a form, and its type, which names what parts it. */
export function multipart(form: FormData): [text: string, type: string] {
  let parted = "";
  while (parted.length < 24) parted += Math.floor(Math.random() * 36).toString(36);
  const boundary = "----machinehub" + parted;
  let text = "";
  for (const [name, value] of form)
    text += `--${boundary}\r\nContent-Disposition: form-data; name="${escaped(name)}"\r\n\r\n${value.replace(/\r\n?|\n/g, "\r\n")}\r\n`;
  return [text + `--${boundary}--\r\n`, `multipart/form-data; boundary=${boundary}`];
}

const escaped = (name: string): string =>
  name
    .replace(/\r\n?|\n/g, "\r\n")
    .replace(/"/g, "%22")
    .replace(/\r/g, "%0D")
    .replace(/\n/g, "%0A");

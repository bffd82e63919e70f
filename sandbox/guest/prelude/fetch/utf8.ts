// UTF-8 as https://encoding.spec.whatwg.org says. What is not UTF-8 is decoded as U+FFFD, one for each longest beginning of a
// character (#utf-8-decoder).

import { TextEncoder as Encoder } from "fast-text-encoding";

const toText: (value: unknown) => string = String;
const UNKNOWN = 0xfffd;
const BOM = 0xfeff;
const SLICE = 8192; // more arguments than that, and a call has no room for them

/** What was decoded, and how many bytes at the end may be the beginning of a character. */
interface Decoded {
  text: string;
  rest: number;
}

function decodeUtf8(bytes: Uint8Array, fatal: boolean): Decoded {
  const length = bytes.length;
  const units = new Uint16Array(Math.min(length, SLICE) + 1);
  let text = "";
  let count = 0;
  let at = 0;
  let rest = 0;
  while (at < length) {
    const first = bytes[at++] as number;
    if (first < 0x80) {
      units[count++] = first;
    } else if (first < 0xc2 || first > 0xf4) {
      if (fatal) throw new TypeError("the bytes are not UTF-8");
      units[count++] = UNKNOWN;
    } else {
      const begun = at - 1;
      let more = first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
      let point = first & (0x3f >> more);
      let least = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
      let most = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
      let bad = false;
      while (more > 0) {
        if (at === length) {
          rest = length - begun;
          bad = true;
          break;
        }
        const next = bytes[at] as number;
        if (next < least || next > most) {
          bad = true;
          break;
        }
        point = (point << 6) | (next & 0x3f);
        least = 0x80;
        most = 0xbf;
        at++;
        more--;
      }
      if (bad && fatal && rest === 0) throw new TypeError("the bytes are not UTF-8");
      if (bad) point = UNKNOWN;
      if (rest > 0) break;
      if (point > 0xffff) {
        units[count++] = 0xd800 + ((point - 0x10000) >> 10);
        point = 0xdc00 + (point & 0x3ff);
      }
      units[count++] = point;
    }
    if (count >= SLICE) {
      text += textOf(units, count);
      count = 0;
    }
  }
  return { text: text + textOf(units, count), rest };
}

const textOf = (units: Uint16Array, count: number): string =>
  String.fromCharCode.apply(null, units.subarray(0, count) as unknown as number[]);

/** All of it. */
export function textOfBytes(bytes: Uint8Array): string {
  const { text, rest } = decodeUtf8(bytes, false);
  return rest > 0 ? text + "\ufffd" : text;
}

const NAMES = [
  "utf-8",
  "utf8",
  "unicode-1-1-utf-8",
  "unicode11utf8",
  "unicode20utf8",
  "x-unicode20utf8",
];

/** https://encoding.spec.whatwg.org/#interface-textdecoder, of UTF-8 alone. */
export class TextDecoder {
  readonly encoding = "utf-8";
  readonly fatal: boolean;
  readonly ignoreBOM: boolean;
  #before: Uint8Array = new Uint8Array();
  #begun = false;

  constructor(label = "utf-8", options: { fatal?: boolean; ignoreBOM?: boolean } = {}) {
    const name = toText(label);
    if (!NAMES.includes(name.trim().toLowerCase()))
      throw new RangeError(`machines decode UTF-8 alone, and not ${name}`);
    this.fatal = Boolean(options.fatal);
    this.ignoreBOM = Boolean(options.ignoreBOM);
  }

  decode(input?: ArrayBuffer | ArrayBufferView, options: { stream?: boolean } = {}): string {
    let bytes = input === undefined ? new Uint8Array() : bytesOf(input);
    if (!bytes) throw new TypeError("bytes are an ArrayBuffer, or a view of one");
    if (this.#before.length > 0) {
      const joined = new Uint8Array(this.#before.length + bytes.length);
      joined.set(this.#before);
      joined.set(bytes, this.#before.length);
      bytes = joined;
    }
    this.#before = new Uint8Array();
    const begun = this.#begun;
    if (!options.stream) this.#begun = false; // also when this throws
    const { text: found, rest } = decodeUtf8(bytes, this.fatal);
    let text = found;
    if (rest > 0 && options.stream) {
      this.#before = bytes.slice(bytes.length - rest);
    } else if (rest > 0) {
      if (this.fatal) throw new TypeError("the bytes are not UTF-8");
      text += "\ufffd";
    }
    const isFirst = !begun && text !== "";
    if (options.stream) this.#begun = begun || text !== "";
    if (isFirst && !this.ignoreBOM && text.charCodeAt(0) === BOM) text = text.slice(1);
    return text;
  }
}

/** A view of all bytes of an ArrayBuffer, or of a view of one; null for anything else. */
export function bytesOf(value: unknown): Uint8Array | null {
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (ArrayBuffer.isView(value))
    return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  return null;
}

/** https://encoding.spec.whatwg.org/#interface-textencoder, without `encodeInto`. */
export class TextEncoder extends Encoder {
  override encode(text: unknown = ""): Uint8Array {
    // TypeScript does not know it yet: half a character (a lone surrogate) becomes U+FFFD.
    const wellFormed = Reflect.get(String.prototype, "toWellFormed") as (this: string) => string;
    return super.encode(wellFormed.call(toText(text)));
  }
}

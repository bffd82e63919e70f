// Bodies of requests and responses: text, or bytes. What is neither is spelled as the Fetch standard says
// (https://fetch.spec.whatwg.org/#bodyinit-unions).

import { FormData, multipart } from "./form.ts";
import { bytesOf, TextEncoder, textOfBytes } from "./utf8.ts";

declare const URLSearchParams: new () => object;

/** Either text, or bytes in base64: as both travel in JSON. */
export interface Spelled {
  text?: string;
  base64?: string;
}

/** By which a body is had for whoever copies or sends it. */
export const SPELLED = Symbol("spelled");

/** A body that is spelled already. */
export class Ready {
  constructor(readonly spelled: Spelled | null) {}
}

const toText: (value: unknown) => string = String;
const encoder = new TextEncoder();
// Newer than what TypeScript knows (https://tc39.es/proposal-arraybuffer-base64/).
const fromBase64 = Reflect.get(Uint8Array, "fromBase64") as (text: string) => Uint8Array;
const toBase64 = Reflect.get(Uint8Array.prototype, "toBase64") as (this: Uint8Array) => string;

/** What a body is, and of which type where its author says none. */
export function spell(body: unknown): [spelled: Spelled | null, type: string | null] {
  if (body === undefined || body === null) return [null, null];
  if (body instanceof Ready) return [body.spelled, null];
  if (typeof body === "string") return [{ text: body }, "text/plain;charset=UTF-8"];
  if (body instanceof URLSearchParams)
    return [{ text: toText(body) }, "application/x-www-form-urlencoded;charset=UTF-8"];
  if (body instanceof FormData) {
    const [text, type] = multipart(body);
    return [{ text }, type];
  }
  const bytes = bytesOf(body);
  if (bytes) return [{ base64: toBase64.call(bytes) }, null];
  return [{ text: toText(body) }, "text/plain;charset=UTF-8"];
}

/** What `Request` and `Response` have in common. */
export class Body {
  #spelled: Spelled | null;
  #used = false;

  constructor(spelled: Spelled | null) {
    this.#spelled = spelled;
  }

  get bodyUsed(): boolean {
    return this.#used;
  }

  /** Streams are not to be had: a body is there as a whole, or not at all. */
  get body(): null {
    return null;
  }

  text(): Promise<string> {
    return this.#use(textOf);
  }

  json(): Promise<unknown> {
    return this.#use((spelled) => JSON.parse(textOf(spelled)) as unknown);
  }

  arrayBuffer(): Promise<ArrayBufferLike> {
    return this.#use((spelled) => toBytes(spelled).slice().buffer);
  }

  bytes(): Promise<Uint8Array> {
    return this.#use(toBytes);
  }

  [SPELLED](): Spelled | null {
    if (this.#used) throw new TypeError("the body was read already");
    return this.#spelled;
  }

  #use<T>(read: (spelled: Spelled) => T): Promise<T> {
    return new Promise((resolve) => {
      const spelled = this[SPELLED]() ?? { text: "" };
      if (this.#spelled) this.#used = true;
      resolve(read(spelled));
    });
  }
}

const toBytes = ({ text, base64 }: Spelled): Uint8Array =>
  base64 === undefined ? encoder.encode(text ?? "") : fromBase64.call(Uint8Array, base64);

function textOf(spelled: Spelled): string {
  const text = spelled.text ?? textOfBytes(toBytes(spelled));
  return text.startsWith("\ufeff") ? text.slice(1) : text;
}

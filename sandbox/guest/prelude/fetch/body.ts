// Bodies of requests and responses: text, or bytes. What is neither is spelled as the Fetch standard says
// (https://fetch.spec.whatwg.org/#bodyinit-unions).

import { TextDecoder, TextEncoder } from "fast-text-encoding";
import { FormData, multipart } from "./form.ts";

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
const decoder = new TextDecoder();
const { atob, btoa } = globalThis as unknown as Record<"atob" | "btoa", (text: string) => string>;

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
  if (bytes) return [{ base64: toBase64(bytes) }, null];
  return [{ text: toText(body) }, "text/plain;charset=UTF-8"];
}

function bytesOf(body: unknown): Uint8Array | null {
  if (body instanceof ArrayBuffer) return new Uint8Array(body);
  if (ArrayBuffer.isView(body))
    return new Uint8Array(body.buffer, body.byteOffset, body.byteLength);
  return null;
}

const SLICE = 8192; // more arguments than that, and a call has no room for them

function toBase64(bytes: Uint8Array): string {
  let text = "";
  for (let at = 0; at < bytes.length; at += SLICE)
    text += String.fromCharCode(...bytes.subarray(at, at + SLICE));
  return btoa(text);
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
  base64 === undefined
    ? encoder.encode(text ?? "")
    : Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

function textOf(spelled: Spelled): string {
  const text = spelled.text ?? decoder.decode(toBytes(spelled));
  return text.startsWith("\ufeff") ? text.slice(1) : text;
}

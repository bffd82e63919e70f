// `fetch` (https://fetch.spec.whatwg.org/#fetch-method): a request becomes a row of the outbox, and the promise waits in the
// frozen memory until the host's answer comes as an input. What the host is asked and answers is JSON, as
// sandbox/protocol/effects.py has it.

import { OUTSIDE, type Answered, type Outside } from "../effects.ts";
import * as safe from "../intrinsics.ts";
import { named, type Signal } from "./abort.ts";
import { Body, Ready, SPELLED, spell, type Spelled } from "./body.ts";
import { Headers, LIST, type HeadersInit } from "./headers.ts";

declare const URL: new (
  text: string,
) => Record<"protocol" | "username" | "password" | "href", string>;

const lent = globalThis as unknown as Record<string, Outside>;
const outside = lent[OUTSIDE] as Outside;
Reflect.deleteProperty(globalThis, OUTSIDE);

/** A machine's own sessions, and those of other machines of its project. */
const HUB = /^hub:/i;
const METHOD = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
const USUAL = ["DELETE", "GET", "HEAD", "OPTIONS", "POST", "PUT"];
const REDIRECTS = ["follow", "error", "manual"];

export interface RequestInit {
  method?: string;
  headers?: HeadersInit;
  body?: unknown;
  redirect?: string;
  signal?: Signal | null;
}

export class Request extends Body {
  readonly url: string;
  readonly method: string;
  readonly headers: Headers;
  readonly redirect: string;
  readonly signal: Signal | null;

  constructor(input: unknown, init: RequestInit = {}) {
    const from = input instanceof Request ? input : null;
    const [given, type] =
      init.body === undefined && from ? [from[SPELLED](), null] : spell(init.body);
    super(given);
    this.url = from ? from.url : urlOf(input);
    this.method = methodOf(init.method ?? from?.method ?? "GET");
    if (given && (this.method === "GET" || this.method === "HEAD"))
      throw new TypeError(`a request by ${this.method} has no body`);
    this.headers = new Headers(init.headers ?? from?.headers);
    if (type !== null && !this.headers.has("content-type")) this.headers.set("content-type", type);
    this.redirect = init.redirect ?? from?.redirect ?? "follow";
    if (!REDIRECTS.includes(this.redirect))
      throw new TypeError(`redirect is one of ${REDIRECTS.join(", ")}`);
    this.signal = init.signal === undefined ? (from?.signal ?? null) : init.signal;
  }

  clone(): Request {
    return new Request(this);
  }

  get [Symbol.toStringTag](): string {
    return "Request";
  }
}

interface Said {
  status: number;
  statusText: string;
  url: string;
  redirected: boolean;
  type: string;
}

interface ResponseInit {
  status?: number;
  statusText?: string;
  headers?: HeadersInit;
}

export class Response extends Body {
  readonly headers: Headers;
  #said: Said;

  constructor(body?: unknown, init: ResponseInit = {}) {
    const [given, type] = spell(body);
    super(given);
    const status = init.status ?? 200;
    if (!(status >= 200 && status <= 599)) throw new RangeError("a status is 200 to 599");
    this.headers = new Headers(init.headers);
    if (type !== null && !this.headers.has("content-type")) this.headers.set("content-type", type);
    const statusText = init.statusText ?? "";
    this.#said = { status, statusText, url: "", redirected: false, type: "default" };
  }

  /** What somebody else said. */
  static of(spelled: Spelled | null, headers: HeadersInit, said: Said): Response {
    const response = new Response(new Ready(spelled), { headers });
    response.#said = said;
    return response;
  }

  static json(value: unknown, init: ResponseInit = {}): Response {
    const headers = new Headers(init.headers);
    if (!headers.has("content-type")) headers.set("content-type", "application/json");
    return new Response(JSON.stringify(value), { ...init, headers });
  }

  static error(): Response {
    const said = { status: 0, statusText: "", url: "", redirected: false, type: "error" };
    return Response.of(null, [], said);
  }

  get status(): number {
    return this.#said.status;
  }

  get statusText(): string {
    return this.#said.statusText;
  }

  get ok(): boolean {
    return this.status >= 200 && this.status <= 299;
  }

  get url(): string {
    return this.#said.url;
  }

  get redirected(): boolean {
    return this.#said.redirected;
  }

  get type(): string {
    return this.#said.type;
  }

  clone(): Response {
    return Response.of(this[SPELLED](), this.headers[LIST], this.#said);
  }

  get [Symbol.toStringTag](): string {
    return "Response";
  }
}

function urlOf(input: unknown): string {
  const text = String(input);
  if (HUB.test(text)) return text;
  const url = new URL(text); // which throws a TypeError for what is none
  if (url.protocol !== "https:" && url.protocol !== "http:")
    throw new TypeError(`fetch knows https:, http: and hub:, not ${url.protocol}`);
  if (url.username || url.password)
    throw new TypeError("a URL with a user or a password is not fetched: use a header");
  return url.href;
}

function methodOf(method: unknown): string {
  const text = String(method);
  if (!METHOD.test(text) || /^(connect|trace|track)$/i.test(text))
    throw new TypeError(`${JSON.stringify(text)} is no method that can be fetched`);
  const upper = text.toUpperCase();
  return USUAL.includes(upper) ? upper : text;
}

/** As the host gets it. */
function textOf(request: Request): string {
  const body = request[SPELLED]();
  return safe.stringify({
    method: request.method,
    url: request.url,
    ...(request.headers[LIST].length ? { headers: request.headers[LIST] } : {}),
    ...body,
    ...(request.redirect === "follow" ? {} : { redirect: request.redirect }),
  }) as string;
}

export function fetch(input: unknown, init?: RequestInit): Promise<Response> {
  return new Promise((resolve, reject: (error?: Error) => void) => {
    const request = new Request(input, init);
    const { signal } = request;
    if (signal?.aborted) throw signal.reason as Error;
    if (!HUB.test(request.url) && !outside.leaves())
      return reject(new TypeError("fetch is not allowed by this machine's egress rules"));
    const stop = (): void => {
      outside.withdraw(id);
      signal?.removeEventListener("abort", stop);
      reject(signal?.reason ?? named("AbortError", "it was taken back"));
    };
    const id = outside.request(textOf(request), (answered) => {
      signal?.removeEventListener("abort", stop);
      settle(answered, resolve, reject);
    });
    signal?.addEventListener("abort", stop);
  });
}

function settle(
  answered: Answered,
  resolve: (response: Response) => void,
  reject: (error: Error) => void,
): void {
  const error = answered["error"] as { code: string; detail: string } | undefined;
  if (error) {
    const name = error.code === "request_cancelled" ? "AbortError" : "TypeError";
    const thrown = name === "TypeError" ? new TypeError(error.detail) : named(name, error.detail);
    return reject(Object.assign(thrown, { code: error.code }));
  }
  const said = answered as unknown as {
    status: number;
    statusText?: string;
    url: string;
    redirected?: boolean;
    headers?: [string, string][];
  } & Spelled;
  const spelled: Spelled =
    said.base64 === undefined ? { text: said.text ?? "" } : { base64: said.base64 };
  resolve(
    Response.of(spelled, said.headers ?? [], {
      status: said.status,
      statusText: said.statusText ?? "",
      url: said.url,
      redirected: said.redirected ?? false,
      type: "basic",
    }),
  );
}

const SECRET = /^[A-Za-z_][A-Za-z0-9_]{0,63}$/;

/** Stands for a secret of the project, in the value of a header: the host puts it there, on the way out. */
export function secret(name: unknown): string {
  const text = String(name);
  if (!SECRET.test(text)) throw new TypeError("a secret's name is letters, digits and underscores");
  return `{{secret:${text}}}`;
}

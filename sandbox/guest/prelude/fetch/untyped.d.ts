// Packages that ship no types, as far as they are used here.

declare module "abort-controller/dist/abort-controller.mjs" {
  export const AbortController: unknown;
  export const AbortSignal: unknown;
}

declare module "fast-text-encoding" {
  export const TextEncoder: new () => { encode(text: string): Uint8Array };
}

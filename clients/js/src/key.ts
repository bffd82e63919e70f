// The client key: by it a hub knows a page that was loaded again, or a connection that broke, to be the same member.

/** Random text of 128 bits. */
export function randomKey(): string {
  const bytes = new Uint8Array(16);
  if (globalThis.crypto?.getRandomValues) globalThis.crypto.getRandomValues(bytes);
  else for (let at = 0; at < bytes.length; at++) bytes[at] = Math.random() * 256;
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const NAME = "machinehub.client";
let ours: string | undefined;

/**
 * This page's key. It outlives a reload in the tab's session storage, from which it is taken out as long as the page lives: a tab that is
 * duplicated copies the storage, and is somebody else.
 */
export function clientKey(): string {
  if (ours !== undefined) return ours;
  ours = randomKey();
  try {
    const storage = globalThis.sessionStorage;
    if (
      !storage ||
      typeof globalThis.addEventListener !== "function" ||
      typeof document === "undefined"
    )
      return ours;
    const take = (): void => {
      ours = storage.getItem(NAME) ?? (ours as string);
      storage.removeItem(NAME);
    };
    take();
    globalThis.addEventListener("pagehide", () => storage.setItem(NAME, ours as string));
    globalThis.addEventListener("pageshow", take);
  } catch {
    // storage that may not be used: then a reload is somebody new
  }
  return ours;
}

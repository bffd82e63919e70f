// The client key: by it a hub knows a page that was loaded again, or a connection that broke, to be the same member.

/** What a host of JavaScript may have, or not: types of browsers say that all of it is there. */
export const host: Partial<typeof globalThis> = globalThis;

/** Random text of 128 bits. */
export function randomKey(): string {
  const bytes = new Uint8Array(16);
  if (host.crypto) host.crypto.getRandomValues(bytes);
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
    const storage = host.sessionStorage;
    const listen = host.addEventListener;
    if (storage === undefined || listen === undefined || host.document === undefined) return ours;
    const take = (): void => {
      ours = storage.getItem(NAME) ?? ours;
      storage.removeItem(NAME);
    };
    take();
    listen("pagehide", () => storage.setItem(NAME, ours as string));
    listen("pageshow", take);
  } catch {
    // storage that may not be used: then a reload is somebody new
  }
  return ours;
}

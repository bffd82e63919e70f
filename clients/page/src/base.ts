// Where the hub stands on its site: "/hub" behind a proxy that has it there, else "". The hub writes it into the page.

export const base: string =
  (globalThis as Partial<typeof globalThis>).document?.querySelector<HTMLMetaElement>(
    'meta[name="machinehub-base"]',
  )?.content ?? "";

/** The page's or the API's path below the hub, as one of the site. */
export const onSite = (path: string): string => base + path;

// Text from strangers, on its way to a person's eyes or into a shell.

// Controls, and what changes the direction or the place of other text, or takes none.
const UNSEEN =
  // eslint-disable-next-line no-control-regex -- controls are what it looks for
  /[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

/** With everything that cannot be seen, or moves what can, written out. */
export const visible = (text: string): string =>
  text.replace(
    UNSEEN,
    (char) => `⟨${(char.codePointAt(0) as number).toString(16).toUpperCase().padStart(4, "0")}⟩`,
  );

/** The same for text of several lines. */
export const visibleLines = (text: string): string => text.split("\n").map(visible).join("\n");

/** At most so many characters. */
export function clip(text: string, max = 44): string {
  const chars = Array.from(visible(text));
  return chars.length > max ? `${chars.slice(0, max - 1).join("")}…` : chars.join("");
}

/** JSON; undefined for what has none, as `undefined` itself. (TypeScript's own type forgets that.) */
export const jsonText: (value: unknown) => string | undefined = JSON.stringify;

/** JSON in printable ASCII alone: whatever it is pasted into takes it for what it is. */
export const asciiJson = (value: unknown): string =>
  (jsonText(value) ?? "null").replace(
    /[^\x20-\x7e]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** One argument of a POSIX shell, in which nothing means anything. */
export const shellQuoted = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;

/** `encodeURIComponent`, and the characters that it leaves though shells and people trip over them. */
export const urlPart = (text: string): string =>
  encodeURIComponent(text).replace(
    /[!'()*]/g,
    (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`,
  );

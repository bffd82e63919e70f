// What a person copies, run by the shell that it is for.

import { execFileSync } from "node:child_process";
import { expect, test } from "vitest";
import { asciiJson, clip, shellQuoted, urlPart, visible } from "../src/text.ts";

const NASTY = [
  "x'",
  "a(b)",
  "$(touch owned)",
  "`id`",
  "a\nb",
  "\u2028",
  "\\",
  "'; exit 1; '",
  '"',
  "é😀",
  "\u202egnp",
  "!!",
  "-d @/etc/passwd",
  "\u0000",
];

test.each(NASTY)("%j stays one argument of a shell", (text) => {
  const url = `http://127.0.0.1:1/m/${urlPart(text)}`;
  const body = asciiJson({ type: text });
  const line = `node -e 'console.log(JSON.stringify(process.argv.slice(1)))' -- ${shellQuoted(url)} -d ${shellQuoted(body)}`;
  const [heardUrl, , heardBody] = JSON.parse(
    execFileSync("bash", ["-c", line], { encoding: "utf8" }),
  ) as string[];
  expect([heardUrl, (JSON.parse(heardBody as string) as { type: string }).type]).toEqual([
    url,
    text,
  ]);
  expect(decodeURIComponent(url.split("/m/")[1] as string)).toBe(text);
  expect(line).toMatch(/^[\x20-\x7e]*$/);
});

test("what cannot be seen is shown", () => {
  expect(visible("a\u202eb\u0000")).toBe("a⟨202E⟩b⟨0000⟩");
  expect(clip("x".repeat(100), 5)).toBe("xxxx…");
  expect(clip("😀😀😀", 2)).toBe("😀…");
});

import { expect, test } from "vitest";
import { pathOf, readRoute } from "../src/route.ts";
import { same } from "../src/tree.tsx";

test.each([
  [1, 1, true],
  [1, 2, false],
  [null, null, true],
  [null, {}, false],
  [[1], [1], true],
  [[], {}, false],
  [{ a: { b: [1] } }, { a: { b: [1] } }, true],
  [{ a: 1 }, { b: 1 }, false],
  [{ a: undefined }, {}, false],
  [NaN, NaN, true],
])("%j and %j", (one, other, wanted) => {
  expect(same(one, other)).toBe(wanted);
});

test.each([
  ["/Wu5gAj", "Wu5gAj", undefined, undefined],
  ["/Wu5gAj/a%2Fb", "Wu5gAj", undefined, "a/b"],
  ["/Wu5gAj@3/s", "Wu5gAj", 3, "s"],
  ["/", "", undefined, undefined],
  ["/m/%", "m", undefined, "%"],
])("%s", (path, machine, version, session) => {
  const route = readRoute(path);
  expect(route).toEqual({ machine, version, session });
  if (path !== "/m/%") expect(pathOf(route)).toBe(path);
});

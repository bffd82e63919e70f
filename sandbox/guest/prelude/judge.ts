// What an author's `access` and `view` answer: may a member send an event, and what does a member see of a session?
//
// Both are functions of what they are given. They run in an instance of the image that belongs to no session and is thrown
// away after each question (sandbox/judge.py), so no question finds what another left behind; the members of one question share
// a copy. Questions and answers are JSON:
//
//   [0, snapshot, event, member]             -> [true] or [false]
//   [1, [member, ...]], and behind line feeds a snapshot and a list of events -> [of, shown]
//
// or [0, fault] where no answer can be had. In the second, the events are those that a turn emitted; `shown` has,
// for each distinct view, [1, view, [event or null, ...], 1 if it is the same for all with these roles, else 0] or [0, fault],
// and `of` says which of them each member gets. It is shorter than the list of members where the rest found no room.

import { matchesState, type StateValue } from "xstate";
import * as safe from "./intrinsics.ts";
import { describe, faultText, limits } from "./turn.ts";

interface Member {
  id: string;
  user?: string;
  /** None where the hub did not say: nobody has roles without a token that gives them. */
  roles?: string[];
  claims?: unknown;
}
type Given = Record<string, unknown>;
type Rule = (given: Given) => unknown;

/** What the machine's file exports besides the machine. */
export interface Rules {
  access?: Rule;
  view?: Rule;
  viewEmitted?: Rule;
}
export const RULES = ["access", "view", "viewEmitted"] as const;

/** How many characters an answer may have: what is over is asked for again. The area for it has 1 MiB (sandbox/forge.py). */
const ANSWER_CHARS_MAX = 256 * 1024;

let rules: Rules = {};
let answer = "";

export function setRules(found: Rules): void {
  rules = found;
}

export const judged = (): string => answer;

export function judge(text: string): void {
  try {
    if (safe.startsWith(text, "[0,")) {
      const [, snapshot, event, member] = safe.parse(text) as [0, Given, unknown, Member];
      answer = allowed(snapshot, event, member);
    } else {
      const first = safe.indexOf(text, "\n");
      const second = safe.indexOf(text, "\n", first + 1);
      const [, members] = safe.parse(safe.slice(text, 0, first)) as [1, Member[]];
      answer = seen(safe.slice(text, first, second), safe.slice(text, second), members);
    }
  } catch (error) {
    answer = "[0," + faultOf("access_failed", error) + "]";
  }
}

function faultOf(code: string, error: unknown): string {
  const { name, message, at } = describe(error);
  const said = name === "Error" ? message : `${name}: ${message}`;
  return faultText(at === undefined ? { code, message: said } : { code, message: said, at });
}

function allowed(snapshot: Given, event: unknown, member: Member): string {
  if (!rules.access) return "[true]";
  member.roles ??= [];
  (event as Given)["sender"] = member; // whatever a client wrote there
  const state = withQuestions(snapshot);
  const says = rules.access({ state, context: snapshot["context"], event, member });
  // A promise would be true.
  if (says !== true && says !== false) throw new Error("access answers true or false");
  return "[" + String(says) + "]";
}

function seen(source: string, events: string, members: Member[]): string {
  const shared: Record<string, number> = { __proto__: null } as never;
  const of: string[] = [];
  const shown: string[] = [];
  let chars = 0;
  for (let i = 0; i < members.length; i++) {
    const member = members[i] as Member;
    member.roles ??= [];
    const roles = safe.stringify(member.roles) as string;
    let found = shared[roles];
    if (found === undefined) {
      const [text, isShared] = viewOf(source, events, member);
      chars += text.length;
      if (shown.length && chars > ANSWER_CHARS_MAX) break;
      found = shown.length;
      safe.append(shown, text);
      if (isShared) shared[roles] = found;
    }
    safe.append(of, safe.toText(found));
  }
  return "[" + safe.arrayText(of) + "," + safe.arrayText(shown) + "]";
}

/** One member's view, and whether all others with the same roles get the same: it asked for nothing else of the member. */
function viewOf(source: string, events: string, given: Member): [text: string, shared: boolean] {
  const member = watched(given);
  try {
    // Parsed anew for each: what one view changes of it must not be seen by another.
    const snapshot = withQuestions(safe.parse(source) as Given);
    const text = spelled((rules.view as Rule)({ snapshot, member: member.shown }));
    const heard: string[] = [];
    const list = safe.parse(events) as unknown[];
    for (let i = 0; i < list.length; i++) {
      const event = list[i];
      const says = rules.viewEmitted
        ? rules.viewEmitted({ event, snapshot, member: member.shown })
        : null;
      safe.append(heard, spelled(says));
    }
    const shared = !member.asked();
    return ["[1," + text + "," + safe.arrayText(heard) + (shared ? ",1]" : ",0]"), shared];
  } catch (error) {
    return ["[0," + faultOf("view_failed", error) + "]", false];
  }
}

function spelled(says: unknown): string {
  if (says instanceof Promise) throw new Error("a view cannot wait for something");
  const text = says === undefined ? "null" : (safe.stringify(says) ?? "null");
  if (text.length > limits.snapshotChars)
    throw new Error(`a view has at most ${limits.snapshotChars} bytes`);
  return safe.wellFormed(text);
}

/** A member that notes whether anything but its roles was asked for. */
function watched(member: Member): { shown: object; asked: () => boolean } {
  let asked = false;
  const shown: object = {};
  const tell = (name: keyof Member, personal: boolean): void => {
    safe.defineProperty(shown, name, {
      get: () => {
        asked ||= personal;
        return member[name];
      },
      enumerable: true,
      __proto__: null,
    } as PropertyDescriptor);
  };
  tell("id", true);
  tell("user", true);
  tell("roles", false);
  tell("claims", true);
  return { shown, asked: () => asked };
}

/** XState's own ways to ask a snapshot, on one that came as JSON. */
function withQuestions(snapshot: Given): Given {
  const add = (name: string, value: unknown): void => {
    safe.defineProperty(snapshot, name, { value, __proto__: null } as PropertyDescriptor);
  };
  add("matches", (wanted: StateValue) => matchesState(wanted, snapshot["value"] as StateValue));
  add("hasTag", (tag: string) => (snapshot["tags"] as string[]).includes(tag));
  return snapshot;
}

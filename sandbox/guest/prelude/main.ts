// The prelude: evaluated before polyfills.ts and before a machine. Its completion value is what the engine's glue calls.
//
// It stands first, by itself, so that XState and what runs in every turn lie close together in memory: a session pays for
// each page that it touches.

import "./console.ts";
import { installRandom } from "./random.ts";
import { installTimers } from "./timers.ts";
import { lendOutside } from "./effects.ts";
import { judge, judged, setRules } from "./judge.ts";
import { loadBundle, type Bundle } from "./machine.ts";
import { rejected } from "./rejections.ts";
import { collect, setMachine, step } from "./session.ts";
import { prepare } from "./transitions/ahead.ts";
import { beStrict, installTransitions } from "./transitions/install.ts";
import { describe, faultText, setLimits } from "./turn.ts";
import { warm } from "./warm.ts";

installRandom();
installTimers();
installTransitions();
warm();
lendOutside();

/** Loads a bundle into this image; answers the forge's report as JSON. */
function load(bundle: Bundle): string {
  const stopsOnError = bundle.onError === "stop"; // read before the bundle runs
  const compiled = bundle.transitions !== "library";
  if (bundle.strict) beStrict();
  if (bundle.limits) setLimits(bundle.limits);
  const { machine, rules, report } = loadBundle(bundle);
  if (machine) {
    if (compiled) {
      try {
        prepare(machine);
      } catch {
        // What cannot be foreseen, a session finds out when it comes to it.
      }
    }
    setMachine(machine, { stopsOnError, compiled });
    setRules(rules);
  }
  return report;
}

/** What evaluating the bundle threw, as JSON: a syntax error that esbuild let pass. */
function explain(thrown: unknown): string {
  const { name, message, at } = describe(thrown);
  return faultText(
    at === undefined
      ? { code: "syntax_error", message: `${name}: ${message}` }
      : { code: "syntax_error", message: `${name}: ${message}`, at },
  );
}

export { load, explain, step, collect, judge, judged, rejected };

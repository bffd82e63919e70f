// A replica by Stately's own SDK: `actorFromStately` of @statelyai/sky. Its input are lines of JSON, {"send": event}; its output
// are lines that say what happens to it.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const { APP, CONFIG, SESSION, KEY } = process.env;
const require = createRequire(`${APP}/`);
globalThis.WebSocket = createRequire(`${APP}/`)("ws");

const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
process.on("uncaughtException", (error) => say({ error: error.message }));

const { actorFromStately } = require("@statelyai/sky");
const { skyConfig } = await import(pathToFileURL(CONFIG).href);
const show = ({ value, context, status }) => ({ value, context, status });

let actor = null;
actorFromStately(
  {
    apiKey: KEY,
    url: "http://the.url/says-nothing-at-run-time",
    sessionId: SESSION,
    onPlayerJoined: ({ numberOfPlayers }) => say({ joined: numberOfPlayers }),
    onPlayerLeft: ({ numberOfPlayers }) => say({ left: numberOfPlayers }),
  },
  skyConfig,
).then(
  (made) => {
    actor = made;
    actor.start();
    say({ started: show(actor.getSnapshot()) });
    actor.subscribe((state) => say({ state: show(state) }));
  },
  (error) => say({ rejected: String(error?.message ?? error) }),
);

createInterface({ input: process.stdin }).on("line", (line) => {
  const { send } = JSON.parse(line);
  actor.send(send);
});

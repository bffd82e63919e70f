// Joins a session, shows what happens there, sends and waits: node index.mjs <the machine's URL> [session]
import { connect } from "@machinehub/client";

const [url, sessionId = "shared-counter"] = process.argv.slice(2);
if (!url) {
  console.error("usage: node index.mjs <the machine's URL> [session]");
  process.exit(2);
}

const store = connect({ url, sessionId });
store.subscribe((state) => state.seq > 0 && console.log(state.seq, state.value, state.context));
store.on("*", (event) => console.log("emitted", event));

const before = await store.waitFor((state) => state.seq > 0);
const ack = await store.send({ type: "increment" });
if (ack.outcome === "rejected") {
  console.error(ack.error.code, ack.error.detail);
  process.exitCode = 1;
} else {
  await store.waitFor((state) => state.seq >= ack.seq);
  console.log(`${before.context.count} became ${store.getSnapshot().context.count}`);
}
store.close();

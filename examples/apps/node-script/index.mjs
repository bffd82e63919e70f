// Joins a session, shows what happens there, sends and waits: node index.mjs <the machine's URL> [session]
import { connect } from "@machinehub/client";

const [url, sessionId = "shared-counter"] = process.argv.slice(2);
if (!url) {
  console.error("usage: node index.mjs <the machine's URL> [session]");
  process.exit(2);
}

const store = connect({ url, sessionId });
store.subscribe((state) => {
  if (store.status === "open") console.log(state.seq, state.value, state.context);
  else console.error(store.status, store.error?.code, store.error?.detail);
});
store.on("*", (event) => console.log("emitted", event));

try {
  const before = await store.waitFor((state) => state.seq > 0);
  const ack = await store.send({ type: "increment" });
  if (ack.outcome === "rejected") throw new Error(`${ack.error.code}: ${ack.error.detail}`);
  const after = await store.waitFor((state) => state.seq >= ack.seq);
  console.log(`${before.context.count} became ${after.context.count}`);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
store.close();

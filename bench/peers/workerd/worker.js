// The peer: the counter as a Durable Object of workerd, durable per event, speaking the frames that bench/load.py speaks.
// What is sent leaves only after the write before it is on disk (workerd's output gate).

import { assign, createActor, createMachine } from "xstate";

const machine = createMachine({
  context: { count: 0 },
  initial: "active",
  states: {
    active: {
      on: { increment: { actions: assign({ count: ({ context }) => context.count + 1 }) } },
    },
  },
});

export class Session {
  constructor(state) {
    this.sql = state.storage.sql;
    this.sql.exec(
      "CREATE TABLE IF NOT EXISTS journal (seq INTEGER PRIMARY KEY, id TEXT, event TEXT)",
    );
    this.actor = createActor(machine);
    this.actor.start();
    this.seq = 1;
    for (const { seq, event } of this.sql.exec("SELECT seq, event FROM journal ORDER BY seq")) {
      this.actor.send(JSON.parse(event));
      this.seq = seq;
    }
    this.sockets = new Set();
  }

  snapshot() {
    const { value, context, status, tags } = this.actor.getSnapshot();
    return { value, context, status, tags: [...tags] };
  }

  fetch() {
    const { 0: client, 1: server } = new WebSocketPair();
    server.accept();
    this.sockets.add(server);
    server.addEventListener("message", ({ data }) => this.receive(server, JSON.parse(data)));
    server.addEventListener("close", () => this.sockets.delete(server));
    server.send(
      JSON.stringify({ type: "snapshot", seq: this.seq, version: 1, snapshot: this.snapshot() }),
    );
    return new Response(null, { status: 101, webSocket: client });
  }

  receive(server, { id, event }) {
    this.actor.send(event);
    this.seq += 1;
    this.sql.exec("INSERT INTO journal VALUES (?, ?, ?)", this.seq, id, JSON.stringify(event));
    const update = JSON.stringify({ type: "update", seq: this.seq, snapshot: this.snapshot() });
    for (const socket of this.sockets) socket.send(update);
    server.send(JSON.stringify({ type: "ack", id, seq: this.seq, outcome: "accepted" }));
  }
}

export default {
  fetch(request, env) {
    const name = new URL(request.url).pathname;
    if (request.headers.get("upgrade") !== "websocket") return new Response("ok");
    return env.SESSIONS.get(env.SESSIONS.idFromName(name)).fetch(request);
  },
};

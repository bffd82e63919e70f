// The peer that is closest to a hub: the same Durable Object, but its code comes as data, at run time, into an isolate of
// its own for each script (workerd's Worker Loader), and sessions are facets of it.

import code from "machine.js";

const load = () => ({
  compatibilityDate: "2025-10-01",
  mainModule: "machine.js",
  modules: { "machine.js": code },
  globalOutbound: null,
});

export class Supervisor {
  constructor(state, env) {
    this.state = state;
    this.env = env;
  }

  fetch(request) {
    const machine = this.state.facets.get("machine", () => ({
      class: this.env.LOADER.get("counter", load).getDurableObjectClass("Session"),
    }));
    return machine.fetch(request);
  }
}

export default {
  fetch(request, env) {
    const name = new URL(request.url).pathname;
    if (request.headers.get("upgrade") !== "websocket") return new Response("ok");
    return env.SESSIONS.get(env.SESSIONS.idFromName(name)).fetch(request);
  },
};

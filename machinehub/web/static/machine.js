// The machine's page: what it is, where it stands, and a way to send it events. All text is written as text.

const [, machine, encodedSession] = location.pathname.split("/");
const session = encodedSession ? decodeURIComponent(encodedSession) : "lobby";
const at = (id) => document.getElementById(id);
const sessionPath = `/${machine}/${encodeURIComponent(session)}`;
let socket;
let sent = 0;
let delay = 500;
const activeMarks = [];

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function showDefinition({ name, version, definition, events }) {
  document.title = `${name} · machinehub`;
  at("name").textContent = name;
  at("version").textContent = `version ${version}`;
  for (const type of events) {
    const button = element("button", type);
    button.addEventListener("click", () => send({ type }));
    at("events").append(button);
  }
  at("event").value = JSON.stringify({ type: events[0] ?? "event" });
  at("states").append(...transitionLines(definition.root), stateList(definition.root, []));
  at("curl").textContent = `curl -X POST ${location.origin}${sessionPath} \\\n  -d '${JSON.stringify({ type: events[0] ?? "event" })}'`;
}

function stateList(node, path) {
  const list = element("ul");
  for (const [key, child] of Object.entries(node.states ?? {})) {
    const item = element("li");
    const mark = element("span", key, "state");
    const here = [...path, key];
    activeMarks.push([here, mark]);
    item.append(mark);
    const kinds = [child.type !== "atomic" && child.type !== "compound" ? child.type : "", node.initial === child.id ? "initial" : ""].filter(Boolean).join(", ");
    if (kinds) item.append(element("small", ` ${kinds}`));
    item.append(...transitionLines(child), stateList(child, here));
    list.append(item);
  }
  return list;
}

function transitionLines(node) {
  return (node.transitions ?? []).map(({ event, kind, delay, targets, guard }) => {
    const what = kind === "after" ? `after ${typeof delay === "number" ? `${delay} ms` : delay}` : kind === "always" ? "always" : kind === "event" ? event : kind;
    return element("small", `${what}${guard ? ` [${guard}]` : ""} → ${targets ? targets.join(", ") : "stays"}`, "transition");
  });
}

function isActive(value, path) {
  for (let depth = 0; depth < path.length; depth++) {
    if (typeof value === "string") return depth === path.length - 1 && value === path[depth];
    if (value === null || typeof value !== "object" || !Object.hasOwn(value, path[depth])) return false;
    value = value[path[depth]];
  }
  return true;
}

function showSnapshot(snapshot, seq) {
  at("value").textContent = `${typeof snapshot.value === "string" ? snapshot.value : JSON.stringify(snapshot.value)}${snapshot.status === "active" ? "" : ` (${snapshot.status})`}`;
  at("snapshot").textContent = `${JSON.stringify(snapshot, null, 2)}\n\nafter ${seq} inputs`;
  for (const [path, mark] of activeMarks) mark.classList.toggle("active", isActive(snapshot.value, path));
}

function status(text) {
  at("status").textContent = text;
  at("status").dataset.status = text;
}

function outcome(text, rejected = false) {
  at("outcome").textContent = text;
  at("outcome").classList.toggle("rejected", rejected);
}

function send(event) {
  if (socket?.readyState !== WebSocket.OPEN) return outcome("not connected: nothing was sent", true);
  socket.send(JSON.stringify({ type: "event", id: `page-${Date.now()}-${++sent}`, event }));
}

function connect() {
  status("connecting");
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${sessionPath}`, "machinehub.v1");
  socket.addEventListener("open", () => { status("open"); delay = 500; });
  socket.addEventListener("message", ({ data }) => {
    const frame = JSON.parse(data);
    if (frame.type === "snapshot" || frame.type === "update") showSnapshot(frame.snapshot, frame.seq);
    else if (frame.type === "presence") at("count").textContent = `· ${frame.count} here`;
    else if (frame.type === "ack") outcome(frame.outcome === "accepted" ? "accepted" : `${frame.error.code}: ${frame.error.detail}`, frame.outcome !== "accepted");
    else if (frame.type === "emitted") outcome(`emitted ${JSON.stringify(frame.event)}`);
    else if (frame.type === "error") outcome(`${frame.code}: ${frame.detail}`, true);
  });
  socket.addEventListener("close", ({ code, reason }) => {
    status("closed");
    if (reason) outcome(reason, true);
    if ([4001, 4003, 4004].includes(code)) return;
    setTimeout(connect, delay * (0.5 + Math.random()));
    delay = Math.min(delay * 2, 10000);
  });
}

at("session").value = session;
at("session-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  location.href = `/${machine}/${encodeURIComponent(at("session").value)}`;
});
at("send-form").addEventListener("submit", (submitted) => {
  submitted.preventDefault();
  try {
    send(JSON.parse(at("event").value));
  } catch (error) {
    outcome(`not JSON: ${error.message}`, true);
  }
});

const answer = await fetch(`/${machine}`, { headers: { Accept: "application/json" } });
if (answer.ok) {
  showDefinition(await answer.json());
  connect();
} else {
  at("name").textContent = (await answer.json()).detail;
  status("closed");
}

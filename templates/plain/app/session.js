// Connects to a session of the machine. `machinehub dev` tells the machine's URL in /machine.json; where the app is served from
// elsewhere, write the URL here instead.
const { url } = await (await fetch("/machine.json")).json();
const { connect } = await import(new URL("/assets/client.js", url));

// Everybody with the same room, which is what stands behind the # of the address, is in the same session.
export const room = decodeURIComponent(location.hash.slice(1)) || "lobby";
export const store = connect({ url, sessionId: room, offlineQueue: true });

addEventListener("hashchange", () => location.reload());

/** Calls `show` with the state, now and after every change of it. */
export function onState(show) {
  const tell = () => {
    document.body.dataset.status = store.status;
    if (store.getSnapshot().seq > 0) show(store.getSnapshot());
  };
  store.subscribe(tell);
  tell();
}

/** An element with properties and children. Text is text: nothing that somebody wrote becomes markup. */
export function h(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export const $ = (selector) => document.querySelector(selector);

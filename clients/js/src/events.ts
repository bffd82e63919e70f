// What partysocket takes for granted and React Native lacks. Elsewhere this does nothing. Imported before partysocket.

import "partysocket/event-target-polyfill"; // Event and EventTarget

if (typeof globalThis.MessageEvent === "undefined") {
  class Message extends Event {
    readonly data: unknown;

    constructor(type: string, init: { data?: unknown } = {}) {
      super(type);
      this.data = init.data;
    }
  }
  Object.defineProperty(globalThis, "MessageEvent", {
    value: Message,
    writable: true,
    configurable: true,
  });
}

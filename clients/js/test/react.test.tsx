// @vitest-environment jsdom
// The hooks: shared connections, StrictMode, what renders and what does not.

import { act, cleanup, render, screen } from "@testing-library/react";
import { StrictMode } from "react";
import { afterEach, expect, test, vi } from "vitest";
import { useMachine, useSelector, useStatelyActor, useStore } from "../src/react.ts";
import { eventually, snapshot, TestSocket } from "./hub.ts";

const sockets: TestSocket[] = [];
vi.stubGlobal(
  "WebSocket",
  class extends TestSocket {
    constructor(url: string, protocols: string[]) {
      super(url, protocols, (socket) => sockets.push(socket));
    }
  },
);

afterEach(async () => {
  cleanup();
  await new Promise((resolve) => setTimeout(resolve, 300));
  sockets.length = 0;
});

const opened = (count: number) => eventually(() => expect(sockets.length).toBe(count));
const say = (frame: Parameters<TestSocket["say"]>[0], at = 0) => act(() => sockets[at]?.say(frame));
const update = (seq: number, count: number) => ({
  type: "update",
  seq,
  snapshot: { value: "active", context: { count }, status: "active", tags: [] },
});

function Counter({ session = "s" }: { session?: string }) {
  const [state, send, { status, presence, error }] = useMachine({
    url: "http://hub/Wu5gAj",
    sessionId: session,
  });
  return (
    <button
      onClick={() => void send({ type: "increment" })}
    >{`${state.context.count} ${status} ${presence.count} ${error?.code}`}</button>
  );
}

test("components share one connection, which the last of them closes", async () => {
  const { rerender } = render(
    <StrictMode>
      <Counter />
      <Counter />
    </StrictMode>,
  );
  await opened(1);
  say(snapshot(1, { count: 7 }));
  say({ type: "presence", count: 2, members: [] });
  expect(screen.getAllByText("7 open 2 undefined").length).toBe(2);
  act(() => screen.getAllByRole("button")[1]?.click());
  expect(sockets[0]?.sent).toMatchObject([{ type: "event", event: { type: "increment" } }]);
  rerender(
    <StrictMode>
      <Counter />
    </StrictMode>,
  );
  await new Promise((resolve) => setTimeout(resolve, 350));
  expect(sockets[0]?.readyState).toBe(1);
  rerender(
    <StrictMode>
      <Counter session="other" />
    </StrictMode>,
  );
  await opened(2);
  await eventually(() => expect(sockets[0]?.readyState).toBe(3));
  say(snapshot(1, { count: 1 }), 1);
  expect(screen.getByText("1 open 0 undefined")).toBeTruthy();
});

test("a component that comes back after the connection closed gets another", async () => {
  const { unmount } = render(<Counter />);
  await opened(1);
  unmount();
  await eventually(() => expect(sockets[0]?.readyState).toBe(3));
  render(<Counter />);
  await opened(2);
  say(snapshot(3, { count: 3 }), 1);
  expect(screen.getByText("3 open 0 undefined")).toBeTruthy();
});

test("a selector renders when its part changes", async () => {
  let renders = 0;
  const Parity = () => {
    const store = useStore({ url: "http://hub/Wu5gAj", sessionId: "p" });
    renders++;
    const parity = useSelector(
      store,
      (state) => ({ odd: Boolean(state.context.count % 2) }),
      (one, other) => one.odd === other.odd,
    );
    return <p>{parity.odd ? "odd" : "even"}</p>;
  };
  render(<Parity />);
  await opened(1);
  say(snapshot(1, { count: 2 }));
  const before = renders;
  say(update(2, 4));
  say({ type: "presence", count: 5, members: [] });
  expect(renders).toBe(before);
  say(update(3, 5));
  expect(screen.getByText("odd")).toBeTruthy();
});

test("a closed door says why", async () => {
  render(<Counter />);
  await opened(1);
  act(() => sockets[0]?.hangUp(4004, "there is no machine"));
  expect(screen.getByText("undefined closed 0 no_such_machine")).toBeTruthy();
});

test("a component written for Stately's hook works", async () => {
  const skyConfig = { actorId: "x", machine: { initial: { context: { count: 0 } } } };
  const players: number[] = [];
  const Sky = () => {
    const [state, send, , sky] = useStatelyActor(
      {
        url: "http://hub/Wu5gAj",
        sessionId: "shared-counter",
        onPlayerJoined: (info) => players.push(info.numberOfPlayers),
        onPlayerLeft: (info) => players.push(-info.numberOfPlayers),
      },
      skyConfig,
    );
    return (
      <button
        onClick={() => send?.({ type: "increment" })}
      >{`${state.context.count} ${sky.isConnecting} ${typeof send}`}</button>
    );
  };
  render(<Sky />);
  expect(screen.getByText("0 true undefined")).toBeTruthy();
  await opened(1);
  say(snapshot(1, { count: 41 }));
  say({ type: "presence", count: 2, members: [] });
  say({ type: "presence", count: 1, joined: [], left: [] });
  act(() => screen.getByText("41 false function").click());
  expect(sockets[0]?.sent.length).toBe(1);
  expect(players).toEqual([2, -1]);
});

test("a selector may make a new object each time", async () => {
  const Long = () => {
    const log = useSelector(useStore({ url: "http://hub/Wu5gAj", sessionId: "sel" }), (state) =>
      ((state.context.log ?? []) as number[]).filter((n) => n > 1),
    );
    return <p>{log.join()}</p>;
  };
  render(
    <StrictMode>
      <Long />
    </StrictMode>,
  );
  await opened(1);
  say(snapshot(1, { log: [1, 2, 3] }));
  expect(screen.getByText("2,3")).toBeTruthy();
});

test("another session has its own config; one that was refused can be tried again", async () => {
  const Room = ({ session }: { session: string }) => {
    const [, , { status }] = useMachine(
      { url: "http://hub/Wu5gAj", sessionId: session },
      { input: { forSession: session } },
    );
    return <p>{status}</p>;
  };
  const { rerender, unmount } = render(<Room session="one" />);
  await opened(1);
  rerender(<Room session="two" />);
  await opened(2);
  expect(decodeURIComponent(sockets[1]?.url ?? "")).toContain('{"forSession":"two"}');
  act(() => sockets[1]?.hangUp(4001));
  expect(screen.getByText("closed")).toBeTruthy();
  unmount();
  render(<Room session="two" />);
  await opened(3);
  say(snapshot(1), 2);
  expect(screen.getByText("open")).toBeTruthy();
});

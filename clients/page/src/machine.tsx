// A machine's page: the chart in the middle, alive; beside it what can be done and what happened.

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useMachine } from "@machinehub/client/react";
import {
  type Ack,
  type Definition,
  type Problem as Trouble,
  type State,
  namedEvents,
  takes,
} from "@machinehub/client";
import { type Entry, fork, readMachine, type Snapshot, wayIn } from "./api.ts";
import { onSite } from "./base.ts";
import { NewerVersion } from "./newer.tsx";
import { Chart } from "./chart/chart.tsx";
import { compare } from "./chart/compare.ts";
import { taken } from "./chart/taken.ts";
import { useTaken } from "./flash.ts";
import { Header } from "./header.tsx";
import { useHistory } from "./history.ts";
import { useLoaded } from "./load.ts";
import { HistoryPanel, People, SessionsPanel, SharePanel, VersionsPanel } from "./panels.tsx";
import { Refusal, Tabs, TokenForm } from "./parts.tsx";
import { causeOf, entryAt, MomentBanner, pastOf } from "./past.tsx";
import { goTo, nameStep, type Route, stepInAddress } from "./route.ts";
import { Send } from "./send.tsx";
import { SnapshotPanel } from "./snapshot.tsx";
import { visibleLines } from "./text.ts";
import { Requests, useRequests } from "./requests.tsx";
import { Timers, usePending } from "./timers.tsx";

const LOBBY = "lobby";
const TABS = ["live", "history", "sessions", "versions", "share"] as const;
type Tab = (typeof TABS)[number];
/** Another session is another page to React, and the same place to a person. */
let lastTab: Tab = "live";

export function MachinePage({ route }: { route: Route }) {
  const { machine, version } = route;
  const way = useLoaded(`${machine} ${version}`, () => wayIn(machine, version));
  if (way.data !== undefined)
    return <Session key={way.data} route={route} token={way.data || undefined} again={way.again} />;
  if (way.problem === undefined) return <p className="notice">loading…</p>;
  return way.problem.status === 401 ? (
    <div className="notice">
      <h1>{machine}</h1>
      <Refusal problem={way.problem} again={way.again} what="this machine's sessions" />
    </div>
  ) : (
    <Ended
      machine={machine}
      trouble={{ code: way.problem.code, detail: way.problem.message }}
      again={way.again}
    />
  );
}

function Session({
  route,
  token,
  again,
}: {
  route: Route;
  token: string | undefined;
  /** Looks for another way in: the token has ended. */
  again: () => void;
}) {
  const { machine, version } = route;
  const session = route.session ?? LOBBY;
  const path = onSite(`/${machine}${version === undefined ? "" : `@${version}`}`);
  const [state, send, { status, presence, error }] = useMachine(
    { url: location.origin + path, sessionId: session },
    { token },
  );
  const [tab, setTab] = useState<Tab>(lastTab);
  /** Presses an event's button, wherever the event was clicked. */
  const press = useRef<(type: string) => void>(() => undefined);
  const [selected, setSelected] = useState<Entry>();
  const [shown, setShown] = useState<number>();
  const [compared, setCompared] = useState<number>();
  const current = state.version || version;
  const info = useLoaded(`${machine} ${shown ?? current}`, () =>
    readMachine(machine, shown ?? current),
  );
  const other = useLoaded(compared === undefined ? undefined : `${machine} ${compared}`, () =>
    readMachine(machine, compared),
  );
  const history = useHistory(machine, session, state.seq);
  const pending = usePending(machine, session, info.data?.definition, state.value, history);
  const requests = useRequests(machine, session, history);
  const step = selected?.outcome === "accepted" ? selected.seq : undefined;
  const past = useLoaded(step === undefined ? undefined : `${machine} ${session} ${step}`, () =>
    pastOf(machine, session, step as number),
  );
  const open = useCallback(
    (name: string) => goTo({ machine, version: undefined, session: name }),
    [machine],
  );
  useEffect(() => {
    document.title = `${info.data?.name ?? "…"} · machinehub`;
  }, [info.data?.name]);
  useEffect(() => {
    if (status === "open" && info.problem) info.again();
  }, [status]);
  useEffect(() => void (lastTab = tab), [tab]);
  const [wanted, setWanted] = useState(stepInAddress);
  useEffect(() => {
    if (wanted === undefined) return;
    setTab("history");
    void entryAt(machine, session, wanted)
      .then(setSelected)
      .finally(() => setWanted(undefined));
  }, []);
  useEffect(() => {
    if (wanted === undefined) nameStep(step);
  }, [step, wanted]);
  const live = useTaken(info.data?.definition, state, history);
  const moment = step !== undefined && past.data?.seq === step ? past.data : undefined;
  const comparison = useMemo(
    () =>
      info.data && other.data && compared !== undefined && other.data.version === compared
        ? compare(other.data.definition, info.data.definition)
        : undefined,
    [info.data, other.data, compared],
  );
  const flash = useMemo(
    () =>
      step === undefined
        ? live.flash
        : moment === undefined || info.data === undefined
          ? undefined
          : {
              ...taken(
                info.data.definition,
                moment.before?.value,
                moment.snapshot.value,
                causeOf(selected),
              ),
              seq: moment.seq,
            },
    [step, moment, info.data, live.flash, selected],
  );

  if (status === "closed" && error && state.seq === 0)
    return <Ended machine={machine} trouble={error} />;
  if (!info.data)
    return info.problem ? (
      <Ended
        machine={machine}
        trouble={{ code: info.problem.code, detail: info.problem.message }}
        again={info.again}
      />
    ) : (
      <p className="notice">loading…</p>
    );
  const { definition, name } = info.data;
  const known: Snapshot | undefined =
    step !== undefined ? moment?.snapshot : state.seq > 0 ? state : undefined;
  // While another version's chart is on its way, the one that is there is not the session's.
  const foreign = current !== undefined && info.data.version !== current;
  const why =
    step !== undefined
      ? "this is the past"
      : status === "closed"
        ? "the session is closed"
        : state.status !== "active"
          ? "the session has ended"
          : undefined;
  const sendIt = async (event: { type: string }): Promise<{ ack: Ack; changed: boolean }> => {
    setSelected(undefined);
    const ack = await send(event);
    if (ack.outcome === "rejected") history.again();
    return { ack, changed: live.changedAt(ack.seq) };
  };

  const clicked = (type: string): void => {
    setTab("live");
    press.current(type);
  };

  return (
    <div className="page">
      <Header
        name={name}
        session={session}
        value={known?.value}
        step={step === undefined ? `seq ${state.seq}` : `seq ${step} of ${state.seq}`}
        status={status}
        trouble={error}
        presence={presence}
        version={current}
        isPrivate={info.data.private}
        waits={step === undefined ? pending[0]?.dueMs : undefined}
      />
      <main>
        <div className="stage">
          {status === "closed" && error && (
            <p className="banner" role="alert">
              {`${visibleLines(error.detail)} (${error.code}). What is shown is how it was. `}
              {error.code === "unauthorised" && <TokenForm again={again} what="this session" />}
              {error.code === "no_such_session" && (
                <button onClick={() => location.reload()}>Begin it anew</button>
              )}{" "}
              <a href={onSite("/")}>All machines</a>
            </p>
          )}
          {status !== "closed" && (
            <NewerVersion machine={machine} session={session} version={current} />
          )}
          {step !== undefined && (
            <MomentBanner
              key={step}
              seq={step}
              loading={moment === undefined}
              problem={moment === undefined ? past.problem : undefined}
              back={() => setSelected(undefined)}
              fork={async () => open((await fork(machine, session, step)).id)}
            />
          )}
          {shown !== undefined && foreign && (
            <p className="banner">
              {`Chart of version ${info.data.version}; the session is on version ${current}. `}
              <button onClick={() => setShown(undefined)}>Back</button>
            </p>
          )}
          {info.problem && (
            <p className="banner" role="alert">
              {`That version cannot be shown: ${info.problem.message} `}
              <button onClick={info.again}>Try again</button>
            </p>
          )}
          <Chart
            definition={definition}
            name={name}
            value={foreign ? undefined : known?.value}
            taken={foreign ? undefined : flash}
            marks={comparison?.marks}
            send={why === undefined && !foreign ? clicked : undefined}
          />
        </div>
        <aside>
          <Tabs names={TABS} chosen={tab} choose={setTab} />
          <div id="panel" role="tabpanel" data-tab={tab} aria-labelledby={`tab-${tab}`}>
            <div hidden={tab !== "live"}>
              <Send
                definition={definition}
                value={known?.value}
                why={why}
                send={sendIt}
                pressed={press}
              />
            </div>
            {tab === "live" && (
              <>
                {step === undefined && <Timers pending={pending} />}
                {step === undefined && <Requests requests={requests} />}
                {known && (
                  <SnapshotPanel
                    snapshot={known}
                    before={moment ? moment.before?.context : live.before}
                  />
                )}
                <People presence={presence} machine={machine} />
              </>
            )}
            {tab === "history" && (
              <>
                <HistoryPanel
                  definition={definition}
                  history={history}
                  requests={requests}
                  selected={selected}
                  select={setSelected}
                />
                {moment && (
                  <SnapshotPanel snapshot={moment.snapshot} before={moment.before?.context} />
                )}
              </>
            )}
            {tab === "sessions" && (
              <SessionsPanel machine={machine} session={session} open={open} />
            )}
            {tab === "versions" && (
              <VersionsPanel
                machine={machine}
                shown={info.data.version}
                show={setShown}
                compared={compared}
                compareWith={setCompared}
                differences={comparison?.list}
                current={current ?? info.data.version}
              />
            )}
            {tab === "share" && (
              <SharePanel
                machine={machine}
                session={session}
                isPrivate={info.data.private}
                type={typeToShow(definition, state)}
              />
            )}
          </div>
        </aside>
      </main>
    </div>
  );
}

/** An event for the snippets: one that is possible now, if there is any. */
function typeToShow(definition: Definition, state: State): string {
  const types = namedEvents(definition);
  return types.find((type) => takes(definition, state.value, type)) ?? types[0] ?? "event";
}

function Ended({
  machine,
  trouble,
  again,
}: {
  machine: string;
  trouble: Trouble;
  again?: () => void;
}) {
  return (
    <div className="notice" role="alert">
      <h1>{machine}</h1>
      <p>
        {`${visibleLines(trouble.detail)} (${trouble.code}) `}
        {again && <button onClick={again}>Try again</button>}
      </p>
      <p>
        <a href={onSite("/")}>All machines of this hub</a>
      </p>
    </div>
  );
}

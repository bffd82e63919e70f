// A machine's page: the chart in the middle, alive; beside it what can be done and what happened.

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useMachine } from "@machinehub/client/react";
import {
  type Ack,
  type Definition,
  type Presence,
  type Problem as Trouble,
  type State,
  type Status,
  namedEvents,
  takes,
} from "@machinehub/client";
import {
  type Entry,
  fork,
  Problem,
  readAt,
  readJournal,
  readMachine,
  type Snapshot,
} from "./api.ts";
import { Chart, type Taken } from "./chart/chart.tsx";
import { compare } from "./chart/compare.ts";
import { type Cause, taken } from "./chart/taken.ts";
import { type History, useHistory } from "./history.ts";
import { useLoaded } from "./load.ts";
import { HistoryPanel, People, SessionsPanel, SharePanel, VersionsPanel } from "./panels.tsx";
import { Tabs } from "./parts.tsx";
import { goTo, nameStep, type Route, stepInAddress } from "./route.ts";
import { Send } from "./send.tsx";
import { visible } from "./text.ts";
import { Tree } from "./tree.tsx";

const LOBBY = "lobby";
const TABS = ["live", "history", "sessions", "versions", "share"] as const;
type Tab = (typeof TABS)[number];
/** Another session is another page to React, and the same place to a person. */
let lastTab: Tab = "live";

export function MachinePage({ route }: { route: Route }) {
  const { machine, version } = route;
  const session = route.session ?? LOBBY;
  const path = `/${machine}${version === undefined ? "" : `@${version}`}`;
  const [state, send, { status, presence, error }] = useMachine({
    url: location.origin + path,
    sessionId: session,
  });
  const [tab, setTab] = useState<Tab>(lastTab);
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

  return (
    <div className="page">
      <Header
        name={name}
        session={session}
        value={known?.value}
        step={step === undefined ? `step ${state.seq}` : `step ${step} of ${state.seq}`}
        status={status}
        trouble={error}
        presence={presence}
        version={current}
      />
      <main>
        <div className="stage">
          {status === "closed" && error && (
            <p className="banner" role="alert">
              {`${visible(error.detail)} (${error.code}). What is shown is how it was. `}
              <a href="/">All machines</a>
            </p>
          )}
          {step !== undefined && (
            <Moment
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
          />
        </div>
        <aside>
          <Tabs names={TABS} chosen={tab} choose={setTab} />
          <div id="panel" role="tabpanel" aria-labelledby={`tab-${tab}`}>
            <div hidden={tab !== "live"}>
              <Send definition={definition} value={known?.value} why={why} send={sendIt} />
            </div>
            {tab === "live" && (
              <>
                {known && (
                  <Snap snapshot={known} before={moment ? moment.before?.context : live.before} />
                )}
                <People presence={presence} />
              </>
            )}
            {tab === "history" && (
              <>
                <HistoryPanel history={history} selected={selected} select={setSelected} />
                {moment && <Snap snapshot={moment.snapshot} before={moment.before?.context} />}
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

function Header({
  name,
  session,
  value,
  step,
  status,
  trouble,
  presence,
  version,
}: {
  name: string;
  session: string;
  value: unknown;
  step: string;
  status: Status;
  trouble: Trouble | null;
  presence: Presence;
  version: number | undefined;
}) {
  return (
    <header>
      <h1>{name}</h1>
      <span className="session" title="session">
        {visible(session)}
      </span>
      <span className="quiet">{version === undefined ? "" : `version ${version}`}</span>
      <span className="value" aria-live="polite" title="state">
        {visible(valueText(value))}
      </span>
      <span className="grow" />
      <span className="quiet step">{step}</span>
      <span className="quiet">{`${presence.count} here`}</span>
      <span
        className="status"
        role="status"
        data-status={status}
        title={trouble ? `${trouble.code}: ${trouble.detail}` : ""}
      >
        {status}
      </span>
    </header>
  );
}

function valueText(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value !== "object" || value === null) return "";
  return Object.entries(value)
    .map(([key, inner]) =>
      valueText(inner)
        ? `${key}: ${typeof inner === "object" ? `(${valueText(inner)})` : valueText(inner)}`
        : key,
    )
    .join(", ");
}

function Snap({ snapshot, before }: { snapshot: Snapshot; before: unknown }) {
  return (
    <section aria-label="Snapshot">
      <h2>Context</h2>
      <div className="tree" data-testid="context">
        <Tree value={snapshot.context} before={before} />
      </div>
      <dl>
        <dt>status</dt>
        <dd>{snapshot.status}</dd>
        {snapshot.tags && snapshot.tags.length > 0 && (
          <>
            <dt>tags</dt>
            <dd>
              {snapshot.tags.map((tag) => (
                <span className="chip" key={tag}>
                  {visible(tag)}
                </span>
              ))}
            </dd>
          </>
        )}
        {snapshot.output !== undefined && (
          <>
            <dt>output</dt>
            <dd className="tree">
              <Tree value={snapshot.output} before={undefined} />
            </dd>
          </>
        )}
        {snapshot.error !== undefined && (
          <>
            <dt>error</dt>
            <dd className="tree">
              <Tree value={snapshot.error} before={undefined} />
            </dd>
          </>
        )}
      </dl>
    </section>
  );
}

function Moment({
  seq,
  loading,
  problem,
  back,
  fork: forkIt,
}: {
  seq: number;
  loading: boolean;
  problem: Problem | undefined;
  back: () => void;
  fork: () => Promise<void>;
}) {
  const [trouble, setTrouble] = useState("");
  const start = (): void =>
    void forkIt().catch((error: unknown) =>
      setTrouble(error instanceof Problem ? `${error.message} (${error.code})` : String(error)),
    );
  return (
    <p className="banner" role="status">
      {problem
        ? `Step ${seq} cannot be shown: ${problem.message} `
        : loading
          ? `Looking up step ${seq}… `
          : `As it was after step ${seq}. `}
      <button onClick={back}>Back to live</button>{" "}
      {!problem && <button onClick={start}>Fork from here</button>}{" "}
      {trouble && `Not forked: ${trouble}`}
    </p>
  );
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
        {`${visible(trouble.detail)} (${trouble.code}) `}
        {again && <button onClick={again}>Try again</button>}
      </p>
      <p>
        <a href="/">All machines of this hub</a>
      </p>
    </div>
  );
}

interface Moment {
  readonly seq: number;
  readonly snapshot: Snapshot;
  readonly before: Snapshot | undefined;
}

async function pastOf(machine: string, session: string, seq: number): Promise<Moment> {
  const [at, before] = await Promise.all([
    readAt(machine, session, seq),
    seq > 1 ? readAt(machine, session, seq - 1).catch(() => undefined) : undefined,
  ]);
  return { seq, snapshot: at.snapshot, before: before?.snapshot };
}

/** A step of the journal; who may not read that sees the state all the same. */
async function entryAt(machine: string, session: string, seq: number): Promise<Entry> {
  const found = await readJournal(machine, session, { from: seq }, 1).catch(() => []);
  return (
    found.find((entry) => entry.seq === seq && entry.outcome === "accepted") ?? {
      seq,
      attempt: 0,
      kind: "event",
      at: "",
      outcome: "accepted",
      changed: true,
    }
  );
}

function causeOf(entry: Entry | undefined): Cause {
  return entry === undefined
    ? {}
    : { event: entry.event?.type, kind: entry.kind, changed: entry.changed };
}

const REMEMBERED = 64;
const RECENT_MS = 10_000;

/** What to flash. The journal says which event it was; who may not read it sees what the states alone give away. */
function useTaken(definition: Definition | undefined, state: State, history: History) {
  const states = useRef<State[]>([]);
  const flashed = useRef(0);
  const [flash, setFlash] = useState<Taken>();
  if (state.seq > 0 && states.current.at(-1)?.seq !== state.seq)
    states.current = [...states.current, state].slice(-REMEMBERED);

  const explain = useCallback(
    (seq: number, cause: Cause) => {
      const before = states.current.findLast((one) => one.seq < seq);
      const after = states.current.find((one) => one.seq === seq);
      if (
        definition === undefined ||
        before === undefined ||
        after === undefined ||
        seq <= flashed.current
      )
        return;
      flashed.current = seq;
      setFlash({ ...taken(definition, before.value, after.value, cause), seq });
    },
    [definition],
  );
  const blind = history.problem !== undefined;
  useEffect(() => {
    if (blind) explain(state.seq, {});
  }, [state.seq, explain, blind]);
  const last = history.entries.findLast((entry) => entry.outcome === "accepted" && entry.changed);
  useEffect(() => {
    if (last !== undefined && last.kind !== "start" && Date.now() - Date.parse(last.at) < RECENT_MS)
      explain(last.seq, causeOf(last));
  }, [last, explain]);
  return {
    flash,
    before: states.current.at(-2)?.context,
    changedAt: (seq: number): boolean => states.current.some((one) => one.seq === seq),
  };
}

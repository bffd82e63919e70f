// A machine's page: the chart in the middle, alive; beside it what can be done and what happened.

import { useCallback, useEffect, useMemo, useRef, useState } from "react";
import { useMachine } from "@machinehub/client/react";
import type { Ack, Definition, Presence, Problem as Trouble, State, Status } from "@machinehub/client";
import { fork, Problem, readAt, readMachine, type Snapshot } from "./api.ts";
import { Chart, type Taken } from "./chart/chart.tsx";
import { compare } from "./chart/compare.ts";
import { taken } from "./chart/taken.ts";
import { type History, useHistory } from "./history.ts";
import { useLoaded } from "./load.ts";
import { HistoryPanel, People, SessionsPanel, SharePanel, VersionsPanel } from "./panels.tsx";
import { Tabs } from "./parts.tsx";
import { goTo, type Route } from "./route.ts";
import { Send } from "./send.tsx";
import { Tree } from "./tree.tsx";

const LOBBY = "lobby";
const TABS = ["live", "history", "sessions", "versions", "share"] as const;

export function MachinePage({ route }: { route: Route }) {
  const { machine, version } = route;
  const session = route.session ?? LOBBY;
  const path = `/${machine}${version === undefined ? "" : `@${version}`}`;
  const [state, send, { status, presence, error }] = useMachine({ url: location.origin + path, sessionId: session });
  const [tab, setTab] = useState<(typeof TABS)[number]>("live");
  const [selected, setSelected] = useState<number>();
  const [shown, setShown] = useState<number>();
  const [compared, setCompared] = useState<number>();
  const current = state.version || version;
  const info = useLoaded(`${machine} ${shown ?? current}`, () => readMachine(machine, shown ?? current));
  const other = useLoaded(compared === undefined ? undefined : `${machine} ${compared}`, () => readMachine(machine, compared));
  const history = useHistory(machine, session, state.seq);
  const past = useLoaded(selected === undefined ? undefined : `${machine} ${session} ${selected}`, () => pastOf(machine, session, selected as number));
  const open = useCallback((name: string) => goTo({ machine, version: undefined, session: name }), [machine]);
  useEffect(() => {
    document.title = `${info.data?.name ?? "…"} · machinehub`;
  }, [info.data?.name]);
  const live = useTaken(info.data?.definition, state, history);
  const moment = selected === undefined ? undefined : past.data?.seq === selected ? past.data : undefined;
  const comparison = useMemo(() => (info.data && other.data && compared !== undefined ? compare(other.data.definition, info.data.definition) : undefined), [info.data, other.data, compared]);

  const cause = moment === undefined ? undefined : causeAt(history, moment.seq);
  const flash = useMemo(
    () => (moment === undefined || info.data === undefined ? live.flash : { ids: taken(info.data.definition, moment.before?.value, moment.snapshot.value, cause ?? {}), seq: moment.seq }),
    [moment, info.data, live.flash, cause?.event, cause?.kind],
  );

  if (status === "closed" && error && state.seq === 0) return <Ended machine={machine} trouble={error} />;
  if (info.problem && !info.data) return <Ended machine={machine} trouble={{ code: info.problem.code, detail: info.problem.message }} />;
  if (!info.data) return <p className="notice">loading…</p>;
  const { definition, name } = info.data;
  const known: Snapshot | undefined = moment?.snapshot ?? (state.seq > 0 ? state : undefined);
  const otherVersion = current !== undefined && info.data.version !== current;
  const sendIt = async (event: { type: string }): Promise<{ ack: Ack; changed: boolean }> => {
    setSelected(undefined);
    const before = state;
    const ack = await send(event);
    if (ack.outcome === "accepted") live.caused(ack.seq, event.type);
    return { ack, changed: live.changedAt(ack.seq) ?? before !== state };
  };

  return (
    <div className="page">
      <Header name={name} session={session} state={state} status={status} trouble={error} presence={presence} version={current} />
      <main>
        <div className="stage">
          {selected !== undefined && <Moment seq={selected} problem={past.problem} back={() => setSelected(undefined)} fork={async () => open((await fork(machine, session, selected)).id)} />}
          {otherVersion && <p className="banner">{`Chart of version ${info.data.version}; the session is on version ${current}. `}<button onClick={() => setShown(undefined)}>Back</button></p>}
          <Chart definition={definition} name={name} value={otherVersion ? undefined : known?.value} taken={otherVersion ? undefined : flash} marks={comparison?.marks} />
        </div>
        <aside>
          <Tabs names={TABS} chosen={tab} choose={setTab} />
          <div id="panel" role="tabpanel" aria-labelledby={`tab-${tab}`}>
            {tab === "live" && (
              <>
                <Send definition={definition} value={known?.value} active={known?.status === "active" && selected === undefined} send={sendIt} />
                {known && <Snap snapshot={known} before={moment ? moment.before?.context : live.before} />}
                <People presence={presence} />
              </>
            )}
            {tab === "history" && (<><HistoryPanel history={history} selected={selected} select={setSelected} />{selected !== undefined && moment && <Snap snapshot={moment.snapshot} before={moment.before?.context} />}</>)}
            {tab === "sessions" && <SessionsPanel machine={machine} session={session} open={open} />}
            {tab === "versions" && <VersionsPanel machine={machine} shown={info.data.version} show={setShown} compared={compared} compareWith={setCompared} differences={comparison?.list} current={current ?? info.data.version} />}
            {tab === "share" && <SharePanel machine={machine} session={session} type={definition.events.find((type) => !type.startsWith("presence.")) ?? "event"} />}
          </div>
        </aside>
      </main>
    </div>
  );
}

function Header({ name, session, state, status, trouble, presence, version }: {
  name: string; session: string; state: State; status: Status; trouble: Trouble | null; presence: Presence; version: number | undefined;
}) {
  return (
    <header>
      <h1>{name}</h1>
      <span className="session" title="session">{session}</span>
      <span className="quiet">{version === undefined ? "" : `version ${version}`}</span>
      <span className="value" aria-live="polite" title="state">{state.seq > 0 ? valueText(state.value) : ""}</span>
      <span className="grow" />
      <span className="quiet">{`step ${state.seq}`}</span>
      <span className="quiet">{`${presence.count} here`}</span>
      <span className="status" role="status" data-status={status} title={trouble ? `${trouble.code}: ${trouble.detail}` : ""}>{status}</span>
    </header>
  );
}

export function valueText(value: unknown): string {
  if (typeof value === "string") return value;
  if (typeof value !== "object" || value === null) return "";
  return Object.entries(value).map(([key, inner]) => (valueText(inner) ? `${key}: ${typeof inner === "object" ? `(${valueText(inner)})` : valueText(inner)}` : key)).join(", ");
}

function Snap({ snapshot, before }: { snapshot: Snapshot; before: unknown }) {
  return (
    <section aria-label="Snapshot">
      <h2>Context</h2>
      <div className="tree" data-testid="context"><Tree value={snapshot.context} before={before} /></div>
      <dl>
        <dt>status</dt><dd>{snapshot.status}</dd>
        {snapshot.tags && snapshot.tags.length > 0 && <><dt>tags</dt><dd>{snapshot.tags.map((tag) => <span className="chip" key={tag}>{tag}</span>)}</dd></>}
        {snapshot.output !== undefined && <><dt>output</dt><dd className="tree"><Tree value={snapshot.output} before={undefined} /></dd></>}
        {snapshot.error !== undefined && <><dt>error</dt><dd className="tree"><Tree value={snapshot.error} before={undefined} /></dd></>}
      </dl>
    </section>
  );
}

function Moment({ seq, problem, back, fork: forkIt }: { seq: number; problem: Problem | undefined; back: () => void; fork: () => Promise<void> }) {
  const [trouble, setTrouble] = useState("");
  const start = (): void => void forkIt().catch((error: unknown) => setTrouble(error instanceof Problem ? `${error.message} (${error.code})` : String(error)));
  return (
    <p className="banner" role="status">
      {problem ? `Step ${seq} cannot be shown: ${problem.message} ` : `As it was after step ${seq}. `}
      <button onClick={back}>Back to live</button> <button onClick={start}>Fork from here</button> {trouble && `Not forked: ${trouble}`}
    </p>
  );
}

function Ended({ machine, trouble }: { machine: string; trouble: Trouble }) {
  return <div className="notice" role="alert"><h1>{machine}</h1><p>{`${trouble.detail} (${trouble.code})`}</p><p><a href="/">All machines of this hub</a></p></div>;
}

interface Moment { readonly seq: number; readonly snapshot: Snapshot; readonly before: Snapshot | undefined }

async function pastOf(machine: string, session: string, seq: number): Promise<Moment> {
  const [at, before] = await Promise.all([readAt(machine, session, seq), seq > 1 ? readAt(machine, session, seq - 1).catch(() => undefined) : undefined]);
  return { seq, snapshot: at.snapshot, before: before?.snapshot };
}

function causeAt(history: History, seq: number): { event?: string | undefined; kind?: string } {
  const entry = history.entries.find((one) => one.seq === seq && one.outcome === "accepted");
  return entry === undefined ? {} : { event: entry.event?.type, kind: entry.kind };
}

const REMEMBERED = 64;

/** What to flash: told by the state itself where that is enough, else once it is known which event it was. */
function useTaken(definition: Definition | undefined, state: State, history: History) {
  const states = useRef<State[]>([]);
  const flashed = useRef(0);
  const [flash, setFlash] = useState<Taken>();
  const known = states.current;
  if (state.seq > 0 && known.at(-1)?.seq !== state.seq) states.current = [...known, state].slice(-REMEMBERED);

  const explain = useCallback((seq: number, cause: { event?: string | undefined; kind?: string }) => {
    const at = states.current.findIndex((one) => one.seq >= seq);
    const after = states.current[at]?.seq === seq ? states.current[at] : states.current[at - 1] ?? states.current.at(-1);
    const before = states.current.findLast((one) => one.seq < seq);
    if (definition === undefined || before === undefined || after === undefined || seq <= flashed.current) return;
    const ids = taken(definition, before.value, after.seq >= seq ? after.value : before.value, cause);
    if (ids.length === 0) return;
    flashed.current = seq;
    setFlash({ ids, seq });
  }, [definition]);
  useEffect(() => explain(state.seq, {}), [state.seq, explain]);
  const last = history.entries.at(-1);
  useEffect(() => {
    if (last !== undefined && last.outcome === "accepted" && last.kind !== "start" && Date.now() - Date.parse(last.at) < 10_000) explain(last.seq, { event: last.event?.type, kind: last.kind });
  }, [last, explain]);
  const before = states.current.at(-2)?.context;
  return {
    flash, before,
    caused: (seq: number, event: string) => explain(seq, { event, kind: "event" }),
    changedAt: (seq: number): boolean | undefined => (states.current.length === 0 ? undefined : states.current.some((one) => one.seq === seq)),
  };
}

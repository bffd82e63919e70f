// The panels beside the chart: history, sessions, versions, and how to get at the session from elsewhere.

import { type SubmitEvent, type KeyboardEvent, useEffect, useRef, useState } from "react";
import type { Definition, Presence, StateNode } from "@machinehub/client";
import {
  deleteSession,
  type Effect,
  type Entry,
  type Page,
  problemOf,
  readScopes,
  readSessions,
  readVersions,
  revoke,
  type SessionItem,
  type Version,
} from "./api.ts";
import { base } from "./base.ts";
import { CalendarList } from "./calendar.tsx";
import type { Difference } from "./chart/compare.ts";
import { eventText } from "./chart/graph.ts";
import type { History } from "./history.ts";
import { useLoaded, useFresh } from "./load.ts";
import { Copy, fieldOf, Refusal } from "./parts.tsx";
import { howItStands, requestText } from "./requests.tsx";
import { asciiJson, clip, shellQuoted, urlPart, visible, visibleLines } from "./text.ts";
import { Tree } from "./tree.tsx";

export function HistoryPanel({
  definition,
  history,
  requests,
  selected,
  select,
}: {
  definition: Definition;
  history: History;
  requests: readonly Effect[];
  selected: Entry | undefined;
  select: (entry: Entry | undefined) => void;
}) {
  const what = (entry: Entry): string => nameOfStep(entry, definition);
  const list = useRef<HTMLOListElement>(null);
  const newest = history.entries.at(-1)?.seq;
  useEffect(() => {
    if (selected === undefined && list.current !== null)
      list.current.scrollTop = list.current.scrollHeight;
  }, [newest, selected]);
  if (history.problem !== undefined && history.entries.length === 0)
    return <Refusal problem={history.problem} again={history.again} what="history" />;
  return (
    <>
      <p className="quiet">Choose an input to see the session as it was right after it.</p>
      {history.older && <button onClick={history.older}>Older inputs</button>}
      <ol className="history" ref={list} onKeyDown={moveAlong}>
        {history.entries.map((entry, index) => (
          <li key={`${entry.seq}.${entry.attempt}`} className={entry.outcome}>
            {gapBefore(entry, history.entries[index - 1])}
            <button
              aria-pressed={isSame(selected, entry)}
              onClick={() => select(isSame(selected, entry) ? undefined : entry)}
            >
              <span className="seq">{entry.seq}</span>
              {entry.outcome === "rejected" && (
                <span className="mark" role="img" aria-label="rejected">
                  ✗
                </span>
              )}
              <span className="what">{what(entry)}</span>
              <span className="note">{noteOf(entry)}</span>
              <time dateTime={entry.at}>{new Date(entry.at).toLocaleTimeString()}</time>
            </button>
            {entry.outcome === "accepted" &&
              requests
                .filter(({ seq }) => seq === entry.seq)
                .map((each) => (
                  <p className="asked" key={each.id}>
                    {`asks ${visible(requestText(each))}: ${visible(howItStands(each))}`}
                  </p>
                ))}
          </li>
        ))}
      </ol>
      {selected && (
        <section aria-label="The input">
          <h2>{`${selected.outcome === "rejected" ? "Rejected at seq" : "Input"} ${selected.seq}: ${what(selected)}`}</h2>
          {selected.error && (
            <p className="trouble">
              {visibleLines(`${selected.error.code}: ${selected.error.detail}`)}
            </p>
          )}
          <div className="tree">
            <Tree value={about(selected)} before={undefined} />
          </div>
        </section>
      )}
    </>
  );
}

/** Up and down go from step to step; Enter looks at one. */
function moveAlong(event: KeyboardEvent<HTMLOListElement>): void {
  const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key] as
    "nextElementSibling" | "previousElementSibling" | undefined;
  const next = way && (event.target as HTMLElement).closest("li")?.[way]?.querySelector("button");
  if (!next) return;
  event.preventDefault();
  next.focus();
}

/** The timers of a session that nobody listened to are not kept for ever. */
function gapBefore(entry: Entry, before: Entry | undefined) {
  if (before === undefined || entry.seq <= before.seq + 1) return null;
  const first = before.seq + 1;
  const last = entry.seq - 1;
  const inputs = first === last ? `Input ${first} is` : `Inputs ${first} to ${last} are`;
  return <p className="quiet">{`${inputs} not kept any more.`}</p>;
}

const isSame = (one: Entry | undefined, other: Entry): boolean =>
  one?.seq === other.seq && one.attempt === other.attempt;

/** What came in. */
function about(entry: Entry): unknown {
  return entry.kind === "start"
    ? { input: entry.input }
    : entry.kind === "timer"
      ? { timer: entry.cause ?? true, at: entry.at }
      : entry.kind === "answer"
        ? { request: entry.effect, answer: entry.answer, at: entry.at }
        : { event: entry.event, sender: entry.sender, at: entry.at };
}

const noteOf = (entry: Entry): string | undefined =>
  entry.outcome === "rejected"
    ? entry.error?.code
    : entry.taken === false
      ? "not taken"
      : entry.changed
        ? ""
        : "no change";

function nameOfStep(entry: Entry, definition: Definition): string {
  if (entry.kind === "start") return "start";
  if (entry.kind === "timer") return timerName(entry.cause, definition);
  if (entry.kind === "answer")
    return `answer ${entry.effect ?? ""}: ${entry.answer?.error?.code ?? entry.answer?.status ?? ""}`;
  return clip(entry.event?.type ?? entry.kind, 60);
}

/** Which timer fired: a delay of a state, by the words that stand on the chart, or what was raised with a delay. */
function timerName(cause: string | undefined, definition: Definition): string {
  if (cause === undefined) return "timer";
  const find = (node: StateNode): string | undefined => {
    const transition = node.transitions?.find(({ event }) => event === cause);
    if (transition !== undefined) return `${eventText(transition, node)} in ${node.key}`;
    for (const child of Object.values(node.states ?? {})) {
      const found = find(child);
      if (found !== undefined) return found;
    }
    return undefined;
  };
  return clip(find(definition.root) ?? `timer ${cause}`, 60);
}

export function SessionsPanel({
  machine,
  session,
  open,
}: {
  machine: string;
  session: string;
  open: (session: string) => void;
}) {
  const first = useLoaded(`${machine} ${session}`, () => readSessions(machine));
  useFresh(first.again);
  const [more, setMore] = useState<Page<SessionItem>>();
  const { data: listed, next } = joined(first.data, more);
  const onward = async (cursor: string): Promise<void> => {
    const page = await readSessions(machine, cursor);
    setMore((before) => ({ data: [...(before?.data ?? []), ...page.data], next: page.next }));
  };
  const [trouble, setTrouble] = useState("");
  const remove = async (id: string): Promise<void> => {
    if (!confirm(`Delete the session ${clip(id)}? It cannot be brought back.`)) return;
    setTrouble("");
    try {
      await deleteSession(machine, id);
      setMore(undefined);
    } catch (error) {
      setTrouble(`Not deleted: ${visible(problemOf(error).message)}`);
    }
    first.again();
  };
  const submit = (event: SubmitEvent<HTMLFormElement>): void => {
    event.preventDefault();
    open(fieldOf(event, "session"));
  };
  return (
    <>
      <form className="line" onSubmit={submit} key={session}>
        <input
          name="session"
          aria-label="Session"
          defaultValue={session}
          maxLength={128}
          required
          spellCheck={false}
        />
        <button>Open</button>
        <button type="button" onClick={() => open(newName())}>
          New session
        </button>
      </form>
      <CalendarList machine={machine} open={open} />
      {first.problem && (
        <Refusal problem={first.problem} again={first.again} what="list of sessions" />
      )}
      <ul className="sessions">
        {first.data && !listed.some(({ id }) => id === session) && (
          <li>
            <button aria-current={true}>
              <span className="what">{visible(session)}</span>
              <span className="note">this one</span>
            </button>
          </li>
        )}
        {listed.map((item) => (
          <li key={item.id} className="row">
            <button aria-current={item.id === session} onClick={() => open(item.id)}>
              <span className="what">{visible(item.id)}</span>
              <span className="note">
                {[
                  `seq ${item.seq}`,
                  `v${item.version}`,
                  item.finished ? "ended" : item.connections ? `${item.connections} here` : "",
                  item.parent ? `from ${visible(item.parent.id)} at ${item.parent.at}` : "",
                ]
                  .filter(Boolean)
                  .join(", ")}
              </span>
            </button>
            <button
              className="remove"
              aria-label={`Delete ${clip(item.id)}`}
              title="delete"
              onClick={() => void remove(item.id)}
            >
              ×
            </button>
          </li>
        ))}
      </ul>
      {trouble && (
        <p className="trouble" role="alert">
          {trouble}
        </p>
      )}
      {next !== null && (
        <button onClick={() => void onward(next).catch(first.again)}>More sessions</button>
      )}
    </>
  );
}

/** The first page as it is now, and those behind it as they were. */
function joined(
  first: Page<SessionItem> | undefined,
  more: Page<SessionItem> | undefined,
): Page<SessionItem> {
  if (first === undefined || more === undefined) return first ?? { data: [], next: null };
  const fresh = new Set(first.data.map(({ id }) => id));
  return {
    data: [...first.data, ...more.data.filter(({ id }) => !fresh.has(id))],
    next: more.next,
  };
}

const newName = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(5)), (byte) => (byte % 36).toString(36)).join(
    "",
  );

export function VersionsPanel({
  machine,
  shown,
  show,
  compared,
  compareWith,
  differences,
  current,
}: {
  machine: string;
  shown: number;
  show: (version: number | undefined) => void;
  compared: number | undefined;
  compareWith: (version: number | undefined) => void;
  differences: readonly Difference[] | undefined;
  current: number;
}) {
  const versions = useLoaded(`${machine} ${current}`, () => readVersions(machine));
  useFresh(versions.again);
  if (versions.problem)
    return <Refusal problem={versions.problem} again={versions.again} what="list of versions" />;
  const others = versions.data?.filter((version) => version.number !== shown) ?? [];
  return (
    <>
      <ul className="versions">
        {versions.data?.map((version) => (
          <li key={version.number}>
            <button
              aria-pressed={version.number === shown}
              onClick={() => show(version.number === current ? undefined : version.number)}
            >
              <span className="what">{`version ${version.number}`}</span>
              <span className="note">{notes(version, current)}</span>
            </button>
            {version.warnings.length > 0 && (
              <details className="warnings">
                <summary>
                  {version.warnings.length === 1
                    ? "1 warning"
                    : `${version.warnings.length} warnings`}
                </summary>
                <ul>
                  {version.warnings.map((warning, index) => (
                    <li key={index}>{visibleLines(warning)}</li>
                  ))}
                </ul>
              </details>
            )}
          </li>
        ))}
      </ul>
      <label className="compare">
        What changed since{" "}
        <select
          value={compared ?? ""}
          onChange={(event) =>
            compareWith(event.target.value ? Number(event.target.value) : undefined)
          }
        >
          <option value="">…</option>
          {others.map((version) => (
            <option
              key={version.number}
              value={version.number}
            >{`version ${version.number}`}</option>
          ))}
        </select>
      </label>
      {differences && (
        <ul className="differences" aria-label="Differences">
          {differences.map((difference, index) => (
            <li key={index} className={difference.change}>
              <b>{difference.change}</b>
              {` ${visible(difference.what)}`}
              {difference.before !== undefined && (
                <small className="minus">{`− ${visible(difference.before)}`}</small>
              )}
              {difference.after !== undefined && (
                <small className="plus">{`+ ${visible(difference.after)}`}</small>
              )}
            </li>
          ))}
          {differences.length === 0 && <li>The chart did not change.</li>}
        </ul>
      )}
    </>
  );
}

function notes(version: Version, current: number): string {
  return [
    version.number === current ? "this session" : "",
    version.active ? "new sessions" : "",
    version.message,
    new Date(version.created_at).toLocaleString(),
  ]
    .filter(Boolean)
    .join(" · ");
}

export function SharePanel({
  machine,
  session,
  isPrivate,
  type,
}: {
  machine: string;
  session: string;
  isPrivate: boolean;
  type: string;
}) {
  const url = `${location.origin}${base}/${machine}/${urlPart(session)}`;
  const shows = isPrivate ? ` -H "Authorization: Bearer $TOKEN"` : "";
  const curl = `curl -X POST ${shellQuoted(url)}${shows} -d ${shellQuoted(asciiJson({ type }))}`;
  const react = `import { useMachine } from "@machinehub/client/react";

const [state, send] = useMachine({
  url: ${asciiJson(`${location.origin}${base}/${machine}`)},
  sessionId: ${asciiJson(session)},${isPrivate ? "\n  token: () => tokenOfYourUser()," : ""}
});
// state.context, state.matches(…)
// send(${asciiJson({ type })})`;
  return (
    <>
      {(
        [
          ["URL", url],
          ["curl", curl],
          ["npm", `npm install ${location.origin}${base}/assets/machinehub-client.tgz`],
          ["React", react],
        ] as const
      ).map(([name, text]) => (
        <section key={name} className="snippet">
          <h2>
            {name} <Copy text={text} label={name} />
          </h2>
          <pre>{text}</pre>
        </section>
      ))}
    </>
  );
}

export function People({ presence, machine }: { presence: Presence; machine: string }) {
  const scopes = useLoaded("scopes", readScopes);
  const mayRevoke = scopes.data?.includes("operate") ?? false;
  const [trouble, setTrouble] = useState("");
  const end = (user: string): void => {
    if (!confirm(`End all connect tokens of ${visible(user)}, and what they opened?`)) return;
    revoke(machine, user).then(
      () => setTrouble(`${visible(user)}: revoked`),
      (error: unknown) => setTrouble(problemOf(error).message),
    );
  };
  return (
    <section aria-label="Who is here">
      <h2>{`${presence.count} here`}</h2>
      <ul className="people">
        {presence.members.slice(0, 50).map((member) => (
          <li
            key={member.id}
            title={`since ${new Date(member.joined_at).toLocaleTimeString()}${member.metadata === undefined ? "" : `\n${JSON.stringify(member.metadata)}`}`}
            className={member.id === presence.self ? "self" : ""}
          >
            {visible(nameOf(member.metadata) ?? member.user ?? member.id.slice(0, 6))}
            {member.id === presence.self ? " (you)" : ""}
            <small>{whoIs(member)}</small>
            {mayRevoke && member.user !== null && (
              <button className="revoke" onClick={() => end(member.user as string)}>
                Revoke
              </button>
            )}
          </li>
        ))}
        {presence.count > 50 && <li>{`and ${presence.count - 50} more`}</li>}
      </ul>
      {trouble && <p role="status">{trouble}</p>}
    </section>
  );
}

/** What a connect token says of somebody, as far as their name does not. */
function whoIs({ metadata, user, roles = [] }: Presence["members"][number]): string {
  const said = [nameOf(metadata) === undefined ? null : user, ...roles];
  return said.flatMap((each) => (each === null ? [] : ` · ${visible(each)}`)).join("");
}

function nameOf(metadata: unknown): string | undefined {
  const name =
    typeof metadata === "object" && metadata !== null
      ? (metadata as { name?: unknown }).name
      : undefined;
  return typeof name === "string" ? name.slice(0, 40) : undefined;
}

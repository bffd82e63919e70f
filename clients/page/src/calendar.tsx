// The calendar of a machine, above its sessions: what is sent next, and what the last times came to.

import { readCalendar, type CalendarItem } from "./api.ts";
import { useFresh, useLoaded } from "./load.ts";
import { clip, visible } from "./text.ts";

const RUNS_SHOWN = 5;

export function CalendarList({
  machine,
  open,
}: {
  machine: string;
  open: (session: string) => void;
}) {
  const { data, again } = useLoaded(`calendar ${machine}`, () => readCalendar(machine));
  useFresh(again);
  if (!data?.length) return null;
  return (
    <section aria-label="Calendar">
      <h2>Calendar</h2>
      <ul className="sessions">
        {data.map((item) => (
          <li key={item.name}>
            <button onClick={() => open(item.session)} title={`open ${clip(item.session)}`}>
              <span className="what">{visible(item.name)}</span>
              <span className="note">
                {`${visible(item.event.type)} to ${clip(item.session, 30)}, next ${when(item.next_at)}`}
              </span>
            </button>
            {item.runs.slice(0, RUNS_SHOWN).map((run) => (
              <p className="note" key={run.at}>
                {`${when(run.at)}: ${run.seq === null ? visible(run.outcome) : `accepted, seq ${run.seq}`}`}
              </p>
            ))}
            <p className="note">{rule(item)}</p>
          </li>
        ))}
      </ul>
    </section>
  );
}

const when = (time: string | null): string =>
  time === null ? "never" : new Date(time).toLocaleString();

const rule = ({ expression, zone }: CalendarItem): string =>
  `${visible(expression)} (${visible(zone)})`;

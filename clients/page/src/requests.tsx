// What a session asked of the world: what waits, with its tries, and how the rest ended.

import { type Effect, readEffects } from "./api.ts";
import type { History } from "./history.ts";
import { useLoaded } from "./load.ts";
import { clip, visible } from "./text.ts";

const SHOWN = 8;

/** Fetched anew whenever the history has grown: a request begins and ends with an input. Who may not read that sees none. */
export function useRequests(
  machine: string,
  session: string,
  { entries, problem }: History,
): readonly Effect[] {
  const newest = problem === undefined ? entries.at(-1)?.seq : undefined;
  const loaded = useLoaded(
    newest === undefined ? undefined : `effects ${machine} ${session} ${newest}`,
    () => readEffects(machine, session),
  );
  return loaded.data ?? [];
}

export function Requests({ requests }: { requests: readonly Effect[] }) {
  if (!requests.length) return null;
  return (
    <section aria-label="Requests">
      <h2>Requests</h2>
      <ul className="requests">
        {requests.slice(0, SHOWN).map((each) => (
          <li key={each.id} data-state={each.state}>
            <span className="what">{visible(requestText(each))}</span>
            <span className="note">{visible(howItStands(each))}</span>
          </li>
        ))}
        {requests.length > SHOWN && <li className="note">{`and older ones`}</li>}
      </ul>
    </section>
  );
}

export const requestText = ({ request }: Effect): string =>
  `${request.method} ${clip(request.url, 60)}`;

/** How a request ended, or what it waits for. */
export function howItStands(each: Effect): string {
  const tries = each.tries > 1 ? `, ${each.tries} tries` : "";
  if (each.state === "held") return "not sent: this session is a fork";
  if (each.state === "pending") {
    if (each.next_try_at === null) return "waits for its answer";
    const at = new Date(each.next_try_at).toLocaleTimeString();
    return `tried ${each.tries} times (${each.trouble ?? ""}), next at ${at}`;
  }
  const status = each.status === null ? "" : ` ${each.status}`;
  return `${each.outcome ?? ""}${status} in ${each.ms ?? 0} ms${tries}`;
}

// The hub's own page: its machines.

import { readMachines } from "./api.ts";
import { onSite } from "./base.ts";
import { useLoaded } from "./load.ts";
import { Copy, Refusal } from "./parts.tsx";

const DEPLOY = "machinehub deploy counter.ts";

export function Welcome() {
  const machines = useLoaded("machines", readMachines);
  return (
    <div className="welcome">
      <h1>machinehub</h1>
      <p>This hub runs state machines. Each has a URL of its own: open one, or deploy another.</p>
      <pre>
        {DEPLOY} <Copy text={DEPLOY} label="the command" />
      </pre>
      {machines.problem && (
        <Refusal problem={machines.problem} again={machines.again} what="its machines" />
      )}
      <ul>
        {machines.data?.map((machine) => (
          <li key={machine.id}>
            <a href={onSite(`/${machine.id}`)}>{machine.name}</a>{" "}
            <span className="quiet">
              {machine.active_version === null
                ? "no active version"
                : `version ${machine.active_version}`}
            </span>
          </li>
        ))}
      </ul>
    </div>
  );
}

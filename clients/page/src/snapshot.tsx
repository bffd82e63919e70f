// A snapshot beside the chart: the context and what else is public, with what changed marked.

import type { Snapshot } from "./api.ts";
import { visible } from "./text.ts";
import { Tree } from "./tree.tsx";

export function SnapshotPanel({ snapshot, before }: { snapshot: Snapshot; before: unknown }) {
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

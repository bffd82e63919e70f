// The statechart. Drawn once for a layout; what is active and what was just taken are classes set on what is there, so that fifty
// updates a second cost little. All text is text: nothing that an author wrote becomes markup.

import { memo, useEffect, useLayoutEffect, useRef, useState } from "react";
import { activeNodes, type Definition } from "@machinehub/client";
import type { Change } from "./compare.ts";
import { clip, jsonText, visible, visibleLines } from "../text.ts";
import {
  type Box,
  type Font,
  graphOf,
  type Line,
  LINE,
  LINES_MAX,
  partsOf,
  roughly,
} from "./graph.ts";
import { giveUp, type Layout, layOutInTime, type Place, type PlacedEdge } from "./layout.ts";
import { type Area, Navigation } from "./view.ts";

export interface Taken {
  readonly ids: readonly string[];
  readonly sure: boolean;
  readonly seq: number;
}

export function Chart({
  definition,
  value,
  taken,
  marks,
  name,
  send,
}: {
  definition: Definition;
  value: unknown;
  taken: Taken | undefined;
  marks: ReadonlyMap<string, Change> | undefined;
  name: string;
  /** Sends an event of which a line on the chart was clicked; undefined when nothing can be sent. */
  send: ((type: string) => void) | undefined;
}) {
  const svg = useRef<SVGSVGElement>(null);
  const { layout, problem } = useLayout(definition, svg);
  const content = useRef<SVGGElement>(null);
  const size = useRef({ width: 1, height: 1 });
  const [navigation, setNavigation] = useState<Navigation>();

  useEffect(() => {
    if (svg.current === null || content.current === null) return undefined;
    const made = new Navigation(svg.current, content.current, () => size.current);
    setNavigation(made);
    return made.listen();
  }, []);
  useLayoutEffect(() => {
    if (layout === undefined) return;
    size.current = layout;
    navigation?.rest();
  }, [layout, navigation]);
  useActive(content, layout, definition, value, navigation);
  useFlash(content, layout, taken);
  useMarks(content, layout, marks);
  useSending(content, layout, definition, value, send);

  return (
    <div className="chart" data-ready={layout !== undefined}>
      <svg
        ref={svg}
        tabIndex={0}
        role="group"
        aria-label={`Statechart of ${name}${value === undefined ? "" : `, in ${JSON.stringify(value)}`}. Arrow keys move it, plus and minus zoom, 0 fits it.`}
      >
        <Definitions />
        <g ref={content}>{layout && <Drawing layout={layout} />}</g>
      </svg>
      {problem ? (
        <p className="notice">The chart cannot be laid out: {problem}</p>
      ) : (
        !layout && <p className="notice">drawing the chart…</p>
      )}
      <div className="zoom" role="group" aria-label="Zoom">
        <button onClick={() => navigation?.zoom(1.25)} aria-label="Zoom in">
          +
        </button>
        <button onClick={() => navigation?.zoom(0.8)} aria-label="Zoom out">
          −
        </button>
        <button onClick={() => navigation?.fit()} aria-label="Fit">
          fit
        </button>
      </div>
    </div>
  );
}

function useLayout(
  definition: Definition,
  svg: { readonly current: SVGSVGElement | null },
): { layout?: Layout; problem?: string } {
  const [laid, setLaid] = useState<{ definition?: Definition; layout?: Layout; problem?: string }>(
    {},
  );
  useEffect(() => {
    let wanted = true;
    let done = false;
    const { width = 4, height = 3 } = svg.current?.getBoundingClientRect() ?? {};
    layOutInTime((arrows) => graphOf(definition, measure, arrows), { width, height })
      .then(
        (layout) => wanted && setLaid({ definition, layout }),
        (error: unknown) => wanted && setLaid({ definition, problem: String(error) }),
      )
      .finally(() => (done = true));
    return () => {
      wanted = false;
      if (!done) giveUp();
    };
  }, [definition]);
  return laid.definition === definition ? laid : {};
}

const FONTS: { readonly [font in Font]: string } = {
  name: "600 13px",
  tag: "10.5px",
  strong: "600 12px",
  plain: "12px",
};
let canvas: CanvasRenderingContext2D | null | undefined;

/** As wide as the browser will draw it. */
function measure(text: string, font: Font): number {
  canvas ??= document.createElement("canvas").getContext("2d");
  if (canvas === null) return roughly(text, font);
  canvas.font = `${FONTS[font]} ui-sans-serif, system-ui, -apple-system, "Segoe UI", sans-serif`;
  return canvas.measureText(text).width;
}

type Content = { readonly current: SVGGElement | null };
const query = (content: Content, attribute: string, id: string): Element[] => [
  ...(content.current?.querySelectorAll(`[data-${attribute}="${CSS.escape(id)}"]`) ?? []),
];

/** The arrow and the words of a transition. */
function find(
  content: Content,
  layout: Layout | undefined,
  id: string,
): { arrows: Element[]; words: Element[] } {
  const edges =
    layout?.graph.edges.filter(({ lines }) => lines.some((line) => line.id === id)) ?? [];
  return {
    arrows: edges.flatMap((edge) => query(content, "edge", edge.id)),
    words: query(content, "transition", id),
  };
}

function useActive(
  content: Content,
  layout: Layout | undefined,
  definition: Definition,
  value: unknown,
  navigation: Navigation | undefined,
): void {
  const key = jsonText(value) ?? "";
  useLayoutEffect(() => {
    const nodes = value === undefined ? [] : activeNodes(definition.root, value);
    const active = new Set(nodes.map((node) => node.id));
    for (const element of content.current?.querySelectorAll(".box") ?? [])
      element.classList.toggle(
        "active",
        active.has((element as SVGElement).dataset["state"] ?? ""),
      );
    for (const element of content.current?.querySelectorAll(".far") ?? [])
      element.classList.toggle(
        "near",
        active.has(((element as SVGElement).dataset["from"] ?? "").slice("s:".length)),
      );
    navigation?.follow(
      around(
        nodes
          .filter((node) => Object.keys(node.states ?? {}).length === 0)
          .flatMap((node) => layout?.places.get(`s:${node.id}`) ?? []),
      ),
    );
    // The value's text stands for it: every update is a new object.
  }, [key, layout, definition, navigation]);
}

/** Of several places that cannot be seen at once, the first: regions are drawn side by side. */
function around([first, ...others]: readonly Area[]): Area | undefined {
  if (first === undefined) return undefined;
  const x = Math.min(first.x, ...others.map((place) => place.x));
  const y = Math.min(first.y, ...others.map((place) => place.y));
  const width = Math.max(...[first, ...others].map((place) => place.x + place.width)) - x;
  const height = Math.max(...[first, ...others].map((place) => place.y + place.height)) - y;
  return width > AROUND || height > AROUND ? first : { x, y, width, height };
}

const AROUND = 800;

function useFlash(content: Content, layout: Layout | undefined, taken: Taken | undefined): void {
  useLayoutEffect(() => {
    for (const id of taken?.ids ?? []) {
      const { arrows, words } = find(content, layout, id);
      for (const element of taken?.sure ? [...arrows, ...words] : arrows) {
        element.getAnimations({ subtree: true }).forEach((animation) => animation.cancel());
        element.classList.remove("taken");
        void (element as SVGGraphicsElement).getBBox(); // so that the animation begins again
        element.classList.add("taken");
      }
    }
  }, [taken, layout]);
}

function useMarks(
  content: Content,
  layout: Layout | undefined,
  marks: ReadonlyMap<string, Change> | undefined,
): void {
  useLayoutEffect(() => {
    const marked = [...(marks ?? [])].flatMap(([id, change]) => {
      const { arrows, words } = find(content, layout, id);
      return [...arrows, ...words, ...query(content, "state", id)].map((element) => ({
        element,
        change,
      }));
    });
    for (const { element, change } of marked) element.classList.add(change);
    return () => {
      for (const { element, change } of marked) element.classList.remove(change);
    };
  }, [marks, layout]);
}

/** Words of events that can be sent now are buttons. */
function useSending(
  content: Content,
  layout: Layout | undefined,
  definition: Definition,
  value: unknown,
  send: ((type: string) => void) | undefined,
): void {
  const active = jsonText(value) ?? "";
  useLayoutEffect(() => {
    const ids = new Set(
      value === undefined ? [] : activeNodes(definition.root, value).map(({ id }) => id),
    );
    for (const element of content.current?.querySelectorAll("[data-sends]") ?? []) {
      const { sends = "", transition = "" } = (element as SVGElement).dataset;
      const can = send !== undefined && ids.has(transition.slice(transition.indexOf(":") + 1));
      element.classList.toggle("can", can);
      if (can) {
        element.setAttribute("role", "button");
        element.setAttribute("tabindex", "0");
        element.setAttribute("aria-label", `Send ${sends}`);
      } else for (const name of ["role", "tabindex", "aria-label"]) element.removeAttribute(name);
    }
  }, [active, layout, definition, send !== undefined]);
  useEffect(() => {
    const root = content.current;
    if (root === null || send === undefined) return undefined;
    const over = new AbortController();
    const act = (event: Event): boolean => {
      const words = (event.target as Element).closest<SVGElement>(".can[data-sends]");
      if (words === null) return false;
      send(words.dataset["sends"] ?? "");
      return true;
    };
    root.addEventListener("click", act, { signal: over.signal });
    root.addEventListener(
      "keydown",
      (event) => {
        if ((event.key === "Enter" || event.key === " ") && act(event)) event.preventDefault();
      },
      { signal: over.signal },
    );
    return () => over.abort();
  }, [content, send]);
}

function Definitions() {
  return (
    <defs>
      <marker
        id="arrow"
        viewBox="0 0 8 8"
        refX="7"
        refY="4"
        markerUnits="userSpaceOnUse"
        markerWidth="9"
        markerHeight="9"
        orient="auto-start-reverse"
      >
        <path d="M0 0L8 4L0 8z" className="arrow" />
      </marker>
    </defs>
  );
}

const Drawing = memo(function Drawing({ layout }: { layout: Layout }) {
  return (
    <>
      <Node box={layout.graph.root} layout={layout} depth={0} />
      {layout.edges.map((placed) => (
        <Arrow key={placed.edge.id} placed={placed} />
      ))}
      {layout.edges.map((placed) => (
        <Label key={placed.edge.id} placed={placed} />
      ))}
    </>
  );
});

function Node({ box, layout, depth }: { box: Box; layout: Layout; depth: number }) {
  const place = layout.places.get(box.key);
  if (place === undefined) return null;
  if (box.kind === "initial")
    return (
      <circle
        className="initial"
        cx={place.x + place.width / 2}
        cy={place.y + place.height / 2}
        r={5}
      />
    );
  if (box.kind === "history") {
    const [x, y] = [place.x + 12, place.y + 12];
    return (
      <g className="history">
        <title>{box.deep ? "deep history" : "history"}</title>
        <circle cx={x} cy={y} r={11} />
        <text x={x} y={y + 4} textAnchor="middle">
          {box.deep ? "H*" : "H"}
        </text>
      </g>
    );
  }
  return (
    <>
      <g
        className={`box ${box.kind} ${box.region ? "region" : ""} ${box.children.length ? "outer" : ""} ${depth % 2 ? "odd" : ""}`}
        data-state={box.id}
      >
        <title>{visible(box.id) + (box.description && `\n${visibleLines(box.description)}`)}</title>
        <rect {...place} rx={8} className="face" />
        {box.kind === "final" && (
          <rect
            x={place.x + 3}
            y={place.y + 3}
            width={place.width - 6}
            height={place.height - 6}
            rx={6}
            className="within"
          />
        )}
        <Header box={box} place={place} />
      </g>
      {box.children.map((child) => (
        <Node key={child.key} box={child} layout={layout} depth={depth + 1} />
      ))}
    </>
  );
}

function Header({ box, place }: { box: Box; place: Place }) {
  const x = place.x + 10;
  let y = place.y + 18;
  const name = clip(box.name);
  const indent = box.first ? 14 : 0;
  let tagAt = x + indent + measure(name, "name") + 8;
  const lines = box.rows.length + box.inner.length;
  return (
    <>
      {box.first && (
        <circle className="initial" cx={x + 4} cy={y - 4.5} r={4}>
          <title>it begins here</title>
        </circle>
      )}
      <text x={x + indent} y={y} className="name">
        {name}
      </text>
      {box.tags.map((tag, index) => {
        const text = clip(tag, 16);
        const width = measure(text, "tag") + 10;
        const at = tagAt;
        tagAt += width + 4;
        return (
          <g key={index} className="tag">
            <title>{visible(tag)}</title>
            <rect x={at} y={y - 11} width={width} height={15} rx={7} />
            <text x={at + 5} y={y}>
              {text}
            </text>
          </g>
        );
      })}
      {lines > 0 && (
        <line
          x1={place.x}
          x2={place.x + place.width}
          y1={place.y + 26}
          y2={place.y + 26}
          className="rule"
        />
      )}
      {box.rows.map((row, index) => {
        y = place.y + 41 + index * LINE;
        return (
          <text key={index} x={x} y={y} className={`row ${row.kind}`}>
            <title>{visible(row.text)}</title>
            {row.kind === "description" ? (
              clip(row.text)
            ) : (
              <>
                <tspan className="kind">{row.kind} </tspan>
                {clip(row.text)}
              </>
            )}
          </text>
        );
      })}
      {box.inner.map((line, index) => (
        <Words
          key={line.id}
          line={line}
          x={x}
          y={place.y + 41 + (box.rows.length + index) * LINE}
          width={place.width - 8}
        />
      ))}
    </>
  );
}

/** A transition in words: what `taken` and the version comparison mark. */
function Words({ line, x, y, width }: { line: Line; x: number; y: number; width: number }) {
  const [event, guard, actions] = partsOf(line);
  return (
    <g className="words" data-transition={line.id} data-sends={line.sends}>
      <title>{visibleLines(line.title)}</title>
      <rect x={x - 6} y={y - 12} width={width} height={LINE} rx={4} className="hit" />
      <text x={x} y={y}>
        <tspan className="event">{event}</tspan>
        {guard && <tspan className="guard">{guard}</tspan>}
        {actions && <tspan className="actions">{actions}</tspan>}
      </text>
    </g>
  );
}

function Arrow({ placed }: { placed: PlacedEdge }) {
  return (
    <g
      data-edge={placed.edge.id}
      data-from={placed.edge.source}
      className={placed.far ? "carrier far" : "carrier"}
    >
      <path d={placed.path} markerEnd="url(#arrow)" className="edge" />
    </g>
  );
}

function Label({ placed: { edge, label } }: { placed: PlacedEdge }) {
  if (label === undefined || edge.lines.length === 0) return null;
  return (
    <g className="label">
      <rect {...label} rx={5} className="paper" />
      {edge.lines.slice(0, LINES_MAX).map((line, index) => (
        <Words
          key={line.id}
          line={line}
          x={label.x + 6}
          y={label.y + 13 + index * LINE}
          width={label.width}
        />
      ))}
      {edge.lines.length > LINES_MAX && (
        <text x={label.x + 6} y={label.y + 13 + LINES_MAX * LINE} className="row">
          <title>
            {edge.lines
              .slice(LINES_MAX)
              .map((line) => visibleLines(line.title))
              .join("\n")}
          </title>
          {`and ${edge.lines.length - LINES_MAX} more`}
        </text>
      )}
    </g>
  );
}

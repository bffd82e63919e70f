// Where everything lies: elk's layered algorithm, in a worker, so that a large chart does not hold up the page.
//
// A compound state whose inside no arrow crosses is laid out by itself, in turn from left to right and from top to bottom: that keeps
// large charts compact. Arrows that cross a border need the states on both sides laid out together.

import ELK, { type ElkExtendedEdge, type ElkNode } from "elkjs/lib/elk-api";
import workerUrl from "elkjs/lib/elk-worker.min.js?url";
import { type Box, type Edge, type Graph, LINE } from "./graph.ts";

export interface Place {
  readonly x: number;
  readonly y: number;
  readonly width: number;
  readonly height: number;
}
export interface PlacedEdge {
  readonly edge: Edge;
  readonly path: string;
  readonly label: Place | undefined;
  /** Whether it lies across other states: shown for active ones alone. */
  readonly far: boolean;
}
export interface Layout {
  readonly graph: Graph;
  readonly width: number;
  readonly height: number;
  readonly places: ReadonlyMap<string, Place>;
  readonly edges: readonly PlacedEdge[];
}

type Direction = "DOWN" | "RIGHT";
const across = (direction: Direction): Direction => (direction === "DOWN" ? "RIGHT" : "DOWN");

let elk: InstanceType<typeof ELK> | undefined;

/** Loading elk takes longer than fetching a definition: it may begin before. */
export function warmUp(): void {
  elk ??= new ELK({ workerFactory: () => new Worker(workerUrl) });
}

const PATIENCE_MS = 7_000;

/**
 * Lays a machine out, as `draw` draws it, for a screen of so many pixels. What would be too small to read there is packed, and so is
 * what cannot be laid out in some seconds (hundreds of states, all of them connected).
 */
export async function layOutInTime(
  draw: (arrows: boolean) => Graph,
  screen: { readonly width: number; readonly height: number },
): Promise<Layout> {
  const shape = screen.width / Math.max(1, screen.height);
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<undefined>(
    (resolve) => (timer = setTimeout(() => resolve(undefined), PATIENCE_MS)),
  );
  const laid = await Promise.race([layOut(draw(true), shape).catch(() => undefined), late]);
  clearTimeout(timer);
  if (laid === undefined) giveUp();
  else if (Math.min(screen.width / laid.width, screen.height / laid.height) >= LEGIBLE) return laid;
  warmUp();
  const packed = await pack(draw(true), draw(false), shape, elk as NonNullable<typeof elk>);
  return laid !== undefined && scaleOf(packed, shape) < scaleOf(laid, shape) * 1.1 ? laid : packed;
}

/** How large a layout can be shown, among those for the same screen. */
const scaleOf = ({ width, height }: Layout, shape: number): number =>
  Math.min(shape / width, 1 / height);

/** At this scale, text is eight pixels high. */
const LEGIBLE = 0.67;

/** Ends what is under way: nobody waits for it any more. */
export function giveUp(): void {
  elk?.terminateWorker();
  elk = undefined;
}

/** The arrangement that can be shown largest on a screen of this shape (width / height). Raises what elk raises; nothing that a definition can say should make it. */
export async function layOut(graph: Graph, shape: number): Promise<Layout> {
  warmUp();
  return arrange(graph, shape, elk as NonNullable<typeof elk>);
}

/** Above so many arrows one direction has to do, and finding it must not take long. */
const ARROWS_FOR_BOTH = 120;
const ARROWS_FOR_CARE = 80;

/** `layOut` on any elk. */
export async function arrange(
  graph: Graph,
  shape: number,
  elk: Pick<InstanceType<typeof ELK>, "layout">,
): Promise<Layout> {
  const tree = treeOf(graph);
  const tries: Layout[] = [];
  let problem: unknown;
  const both = graph.edges.length <= ARROWS_FOR_BOTH;
  for (const page of [
    pageOf(graph, tree, "DOWN"),
    ...(both ? [pageOf(graph, tree, "RIGHT")] : []),
    pageOf(graph, together(tree), "DOWN"),
  ]) {
    if (tries.length === (both ? 2 : 1)) break; // the last is for charts that elk cannot do piece by piece
    try {
      tries.push(read(graph, await elk.layout(page)));
    } catch (error) {
      problem = error;
    }
  }
  if (tries.length === 0) throw problem;
  return tries.reduce((best, next) =>
    scaleOf(next, shape) > scaleOf(best, shape) * 1.05 ? next : best,
  );
}

/**
 * A chart that is too large for its arrows: states stand side by side, in reading order, and their transitions are rows in them. Arrows
 * are drawn across, without words. `full` has the arrows, `graph` the rows.
 */
export async function pack(
  full: Graph,
  graph: Graph,
  shape: number,
  elk: Pick<InstanceType<typeof ELK>, "layout">,
): Promise<Layout> {
  const found = await elk.layout({
    id: PAGE,
    children: [packedNode(graph.root, shape)],
    layoutOptions: { ...packing(shape), "elk.json.shapeCoords": "ROOT" },
  });
  const packed = read(graph, found);
  const edges = full.edges
    .filter(({ lines }) => lines.length > 0)
    .map((edge): PlacedEdge => {
      const [from, to] = [packed.places.get(edge.source), packed.places.get(edge.target)];
      const path = from === undefined || to === undefined ? "" : straight(from, to);
      return { edge: { ...edge, lines: [] }, path, label: undefined, far: true };
    });
  return { ...packed, graph: { ...graph, edges: edges.map(({ edge }) => edge) }, edges };
}

const packing = (shape: number): { [name: string]: string } => ({
  "elk.algorithm": "rectpacking",
  "elk.aspectRatio": String(shape),
  "elk.spacing.nodeNode": "12",
  "elk.padding": "[top=8,left=8,bottom=8,right=8]",
  "elk.rectpacking.widthApproximation.optimizationGoal": "MAX_SCALE_DRIVEN",
  "elk.rectpacking.packing.strategy": "COMPACTION",
});

function packedNode(box: Box, shape: number): ElkNode {
  if (box.children.length === 0) return { id: box.key, width: box.width, height: box.height };
  const top = box.height + (box.rows.length + box.inner.length ? 4 : 0);
  return {
    id: box.key,
    children: box.children.map((child) => packedNode(child, shape)),
    layoutOptions: {
      ...packing(shape),
      "elk.padding": `[top=${top},left=10,bottom=10,right=10]`,
      "elk.nodeSize.constraints": "MINIMUM_SIZE",
      "elk.nodeSize.minimum": `(${box.width},${box.height + LINE})`,
    },
  };
}

/** From the border of one place to that of another, bent a little, so that two ways between them can be told apart. */
export function straight(from: Place, to: Place): string {
  const middle = ({ x, y, width, height }: Place): Point => ({
    x: x + width / 2,
    y: y + height / 2,
  });
  const [one, other] = [middle(from), middle(to)];
  const bend = 0.08;
  const control = {
    x: (one.x + other.x) / 2 + (other.y - one.y) * bend,
    y: (one.y + other.y) / 2 - (other.x - one.x) * bend,
  };
  const [start, end] = [onBorder(from, control), onBorder(to, control)];
  return `M${start.x} ${start.y}Q${control.x} ${control.y} ${end.x} ${end.y}`;
}

/** Where the line from a place's middle to a point leaves it. */
function onBorder({ x, y, width, height }: Place, to: Point): Point {
  const [centreX, centreY] = [x + width / 2, y + height / 2];
  const [dx, dy] = [to.x - centreX, to.y - centreY];
  const part = Math.min(
    dx === 0 ? Infinity : width / 2 / Math.abs(dx),
    dy === 0 ? Infinity : height / 2 / Math.abs(dy),
    1,
  );
  return { x: centreX + dx * part, y: centreY + dy * part };
}

interface Tree {
  /** Each node's ancestors, itself included, outermost first. */
  readonly paths: ReadonlyMap<string, readonly string[]>;
  /** Edges by the innermost node that contains both ends. */
  readonly edges: ReadonlyMap<string, readonly Edge[]>;
  /** Nodes that an arrow from inside leaves, or one from outside enters. */
  readonly crossed: ReadonlySet<string>;
  readonly care: boolean;
}

const PAGE = "page";

export function treeOf(graph: Graph): Tree {
  const paths = new Map<string, readonly string[]>();
  const visit = (box: Box, above: readonly string[]): void => {
    const path = [...above, box.key];
    paths.set(box.key, path);
    for (const child of box.children) visit(child, path);
  };
  visit(graph.root, [PAGE]);
  const edges = new Map<string, Edge[]>();
  const crossed = new Set<string>();
  for (const edge of graph.edges) {
    const [from, to] = [paths.get(edge.source), paths.get(edge.target)];
    if (from === undefined || to === undefined) continue; // a target that is not drawn
    let depth = 0;
    while (depth < from.length - 1 && depth < to.length - 1 && from[depth + 1] === to[depth + 1])
      depth++;
    // An arrow between a state and one inside of it belongs to what contains both.
    const owner = from[depth] === edge.source || from[depth] === edge.target ? depth - 1 : depth;
    const container = from[Math.max(0, owner)] as string;
    edges.set(container, [...(edges.get(container) ?? []), edge]);
    for (const path of [from, to])
      for (const id of path.slice(Math.max(0, owner) + 1, -1)) crossed.add(id);
    if (owner !== depth) crossed.add(from[depth] as string);
  }
  return { paths, edges, crossed, care: graph.edges.length <= ARROWS_FOR_CARE };
}

/** As if arrows crossed every border. */
const together = (tree: Tree): Tree => ({ ...tree, crossed: new Set(tree.paths.keys()) });

function pageOf(graph: Graph, tree: Tree, direction: Direction): ElkNode {
  return {
    id: PAGE,
    children: [nodeOf(graph.root, tree, direction)],
    edges: edgesOf(PAGE, tree),
    layoutOptions: {
      ...options(direction, tree.care),
      "elk.json.shapeCoords": "ROOT",
      "elk.json.edgeCoords": "ROOT",
      "elk.padding": "[top=8,left=8,bottom=8,right=8]",
    },
  };
}

function options(direction: Direction, care: boolean): { [name: string]: string } {
  return {
    "elk.algorithm": "layered",
    "elk.direction": direction,
    "elk.hierarchyHandling": "INCLUDE_CHILDREN",
    "elk.edgeRouting": "ORTHOGONAL",
    "elk.edgeLabels.inline": "true",
    "elk.layered.edgeLabels.sideSelection": "ALWAYS_DOWN",
    "elk.spacing.nodeNode": "24",
    "elk.spacing.edgeNode": "14",
    "elk.spacing.edgeEdge": "12",
    "elk.spacing.edgeLabel": "2",
    "elk.layered.spacing.nodeNodeBetweenLayers": "26",
    "elk.layered.spacing.edgeNodeBetweenLayers": "12",
    "elk.layered.spacing.edgeEdgeBetweenLayers": "10",
    "elk.layered.nodePlacement.strategy": care ? "NETWORK_SIMPLEX" : "BRANDES_KOEPF",
    "elk.layered.thoroughness": care ? "10" : "2",
    // What is written first comes first, and what leads back is drawn back.
    "elk.layered.cycleBreaking.strategy": "MODEL_ORDER",
    "elk.layered.considerModelOrder.strategy": "PREFER_NODES",
  };
}

function edgesOf(container: string, tree: Tree): ElkExtendedEdge[] {
  return (tree.edges.get(container) ?? []).map((edge) => ({
    id: edge.id,
    sources: [edge.source],
    targets: [edge.target],
    labels: edge.lines.length
      ? [{ id: `${edge.id}l`, text: " ", width: edge.width, height: edge.height }]
      : [],
  }));
}

function nodeOf(box: Box, tree: Tree, direction: Direction): ElkNode {
  if (box.children.length === 0) return { id: box.key, width: box.width, height: box.height };
  const top = box.height + (box.rows.length + box.inner.length ? 4 : 0);
  const closed = !tree.crossed.has(box.key);
  const innermost = box.children.every((child) => child.children.length === 0);
  const inside = closed && innermost ? across(direction) : direction;
  return {
    id: box.key,
    children: box.children.map((child) => nodeOf(child, tree, inside)),
    edges: edgesOf(box.key, tree),
    layoutOptions: {
      ...(closed
        ? { ...options(inside, tree.care), "elk.hierarchyHandling": "SEPARATE_CHILDREN" }
        : {}),
      ...(closed && box.children.some((child) => tree.crossed.has(child.key))
        ? { "elk.hierarchyHandling": "INCLUDE_CHILDREN" }
        : {}),
      "elk.padding": `[top=${top},left=14,bottom=14,right=14]`,
      "elk.nodeSize.constraints": "MINIMUM_SIZE",
      "elk.nodeSize.minimum": `(${box.width},${box.height + LINE})`,
    },
  };
}

const placeOf = ({ x = 0, y = 0, width = 0, height = 0 }: Partial<Place>): Place => ({
  x,
  y,
  width,
  height,
});

function read(graph: Graph, laid: ElkNode): Layout {
  const places = new Map<string, Place>();
  const drawn = new Map<string, ElkExtendedEdge>();
  const collect = (node: ElkNode): void => {
    for (const edge of node.edges ?? []) drawn.set(edge.id, edge);
    for (const child of node.children ?? []) {
      places.set(child.id, placeOf(child));
      collect(child);
    }
  };
  collect(laid);
  const edges = graph.edges.map((edge): PlacedEdge => {
    const placed = drawn.get(edge.id);
    const [label] = placed?.labels ?? [];
    return {
      edge,
      path: (placed?.sections ?? [])
        .map((section) =>
          rounded([section.startPoint, ...(section.bendPoints ?? []), section.endPoint]),
        )
        .join(" "),
      label: label && placeOf(label),
      far: false,
    };
  });
  return { graph, places, edges, width: laid.width ?? 1, height: laid.height ?? 1 };
}

interface Point {
  readonly x: number;
  readonly y: number;
}
const RADIUS = 6;

/** A line through points, its corners rounded. */
export function rounded(points: readonly Point[]): string {
  const [first, ...rest] = points;
  if (first === undefined) return "";
  let path = `M${first.x} ${first.y}`;
  rest.forEach((corner, index) => {
    const before = points[index] as Point;
    const after = rest[index + 1];
    if (after === undefined) return void (path += `L${corner.x} ${corner.y}`);
    const one = towards(corner, before);
    const other = towards(corner, after);
    path += `L${one.x} ${one.y}Q${corner.x} ${corner.y} ${other.x} ${other.y}`;
  });
  return path;
}

function towards(from: Point, to: Point): Point {
  const length = Math.hypot(to.x - from.x, to.y - from.y);
  const part = length === 0 ? 0 : Math.min(RADIUS, length / 2) / length;
  return { x: from.x + (to.x - from.x) * part, y: from.y + (to.y - from.y) * part };
}

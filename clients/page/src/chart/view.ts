// Pan and zoom of the chart: pointer, wheel, two fingers, keys. The transform is set without rendering, so that it follows a hand.

export interface View {
  x: number;
  y: number;
  scale: number;
}
export interface Size {
  readonly width: number;
  readonly height: number;
}
export interface Area extends Size {
  readonly x: number;
  readonly y: number;
}

const SCALE_MIN = 0.02;
const MARGIN = 14;
/** Below the chart are the buttons. */
const FOOT = 56;
/** So much of the chart stays in sight, wherever it is dragged. */
const SEEN = 60;
const SCALE_MAX = 3;
/** Screens that are narrower, in pixels, are phones'. */
const PHONE = 600;
const KEY_STEP = 60;

/** The view in which everything is seen, not larger than life. */
export function fitting(
  width: number,
  height: number,
  screenWidth: number,
  screenHeight: number,
): View {
  const [across, down] = [
    Math.max(1, screenWidth - 2 * MARGIN),
    Math.max(1, screenHeight - MARGIN - FOOT),
  ];
  const scale = Math.max(SCALE_MIN, Math.min(1.2, across / width, down / height)) || 1;
  return {
    scale,
    x: (screenWidth - width * scale) / 2,
    y: MARGIN + Math.max(0, (down - height * scale) / 2),
  };
}

export function zoomed(view: View, factor: number, x: number, y: number): View {
  const scale = Math.min(SCALE_MAX, Math.max(SCALE_MIN, view.scale * factor));
  return {
    scale,
    x: x - ((x - view.x) * scale) / view.scale,
    y: y - ((y - view.y) * scale) / view.scale,
  };
}

/** Names are nine pixels high then. */
export const READABLE = 0.72;
/** A chart that only fits smaller than this, with names of seven pixels, is seen in part. */
const BEARABLE = 0.55;

/** What is seen when nobody has moved the chart: all of it, if that can be read; else the part around `place`, readable. */
export function resting(size: Size, screen: Size, place: Area | undefined): View {
  const all = fitting(size.width, size.height, screen.width, screen.height);
  if (all.scale >= BEARABLE || place === undefined) return all;
  const middle = (length: number, at: number, room: number, foot: number): number => {
    const whole = length * READABLE;
    const wanted = (room - foot) / 2 - at * READABLE;
    return whole + 2 * MARGIN <= room - foot
      ? (room - foot - whole) / 2
      : Math.min(MARGIN, Math.max(room - foot - MARGIN - whole, wanted));
  };
  return {
    scale: READABLE,
    x: middle(size.width, place.x + place.width / 2, screen.width, 0),
    y: middle(size.height, place.y + place.height / 2, screen.height, FOOT),
  };
}

/** Whether all of `place` is in sight. */
export function isInSight(view: View, place: Area, screen: Size): boolean {
  const [left, top] = [view.x + place.x * view.scale, view.y + place.y * view.scale];
  return (
    left >= 0 &&
    top >= 0 &&
    left + place.width * view.scale <= screen.width &&
    top + place.height * view.scale <= screen.height
  );
}

export class Navigation {
  #place: Area | undefined;
  #view: View = { x: 0, y: 0, scale: 1 };
  #moved = false;
  readonly #pointers = new Map<number, { x: number; y: number }>();
  readonly #svg: SVGSVGElement;
  readonly #content: SVGGElement;
  readonly #size: () => Size;

  constructor(svg: SVGSVGElement, content: SVGGElement, size: () => Size) {
    this.#svg = svg;
    this.#content = content;
    this.#size = size;
  }

  /** Starts listening; returns what ends that. */
  listen(): () => void {
    const over = new AbortController();
    const options = { signal: over.signal };
    const svg = this.#svg;
    svg.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        const { left, top } = svg.getBoundingClientRect();
        if (event.ctrlKey || !event.shiftKey)
          this.set(
            zoomed(
              this.#view,
              Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)),
              event.clientX - left,
              event.clientY - top,
            ),
          );
        else this.#pan(-event.deltaX - event.deltaY, 0);
      },
      { ...options, passive: false },
    );
    svg.addEventListener(
      "pointerdown",
      (event) => {
        if (event.button !== 0) return;
        // What can be clicked gets its click: a pointer that is captured clicks nothing but the chart.
        if ((event.target as Element).closest(".can") !== null) return;
        this.#pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
        svg.setPointerCapture(event.pointerId);
      },
      options,
    );
    svg.addEventListener("pointermove", (event) => this.#drag(event), options);
    for (const end of ["pointerup", "pointercancel"] as const)
      svg.addEventListener(end, (event) => this.#pointers.delete(event.pointerId), options);
    svg.addEventListener(
      "keydown",
      (event) => {
        if (this.key(event.key)) event.preventDefault();
      },
      options,
    );
    const resized = new ResizeObserver(() => {
      if (!this.#moved) this.rest();
    });
    resized.observe(svg);
    over.signal.addEventListener("abort", () => resized.disconnect());
    return () => over.abort();
  }

  /** Whether the key meant something. */
  key(key: string): boolean {
    const step = {
      ArrowLeft: [KEY_STEP, 0],
      ArrowRight: [-KEY_STEP, 0],
      ArrowUp: [0, KEY_STEP],
      ArrowDown: [0, -KEY_STEP],
    }[key];
    if (step !== undefined) this.#pan(step[0] as number, step[1] as number);
    else if (key === "+" || key === "=") this.zoom(1.25);
    else if (key === "-") this.zoom(0.8);
    else if (key === "0") this.fit();
    else return false;
    return true;
  }

  zoom(factor: number): void {
    const { width, height } = this.#svg.getBoundingClientRect();
    this.set(zoomed(this.#view, factor, width / 2, height / 2));
  }

  /** All of it, however small. */
  fit(): void {
    const { width, height } = this.#svg.getBoundingClientRect();
    const size = this.#size();
    this.set(fitting(size.width, size.height, width, height));
  }

  /** As it is before anybody moves it. A phone shows all of it first: there is room to zoom in, and none to look around. */
  rest(): void {
    const screen = this.#svg.getBoundingClientRect();
    const size = this.#size();
    this.set(
      screen.width < PHONE
        ? fitting(size.width, size.height, screen.width, screen.height)
        : resting(size, screen, this.#place),
    );
    this.#moved = false;
  }

  /** What is active is there now: a chart that nobody has moved follows, when it is out of sight. */
  follow(place: Area | undefined): void {
    const first = this.#place === undefined;
    this.#place = place;
    if (
      place !== undefined &&
      !this.#moved &&
      (first || !isInSight(this.#view, place, this.#svg.getBoundingClientRect()))
    )
      this.rest();
  }

  set(view: View): void {
    const { width, height } = this.#svg.getBoundingClientRect();
    const size = this.#size();
    const keep = (at: number, length: number, screen: number): number =>
      Math.min(screen - SEEN, Math.max(SEEN - length * view.scale, at));
    view = { ...view, x: keep(view.x, size.width, width), y: keep(view.y, size.height, height) };
    this.#view = view;
    this.#moved = true;
    this.#content.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
  }

  #pan(x: number, y: number): void {
    this.set({ ...this.#view, x: this.#view.x + x, y: this.#view.y + y });
  }

  #drag(event: PointerEvent): void {
    const before = this.#pointers.get(event.pointerId);
    if (before === undefined) return;
    const now = { x: event.clientX, y: event.clientY };
    const other = [...this.#pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.#pointers.set(event.pointerId, now);
    if (other === undefined) return this.#pan(now.x - before.x, now.y - before.y);
    const { left, top } = this.#svg.getBoundingClientRect();
    const factor =
      Math.hypot(now.x - other.x, now.y - other.y) /
      Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
    this.set(zoomed(this.#view, factor, (now.x + other.x) / 2 - left, (now.y + other.y) / 2 - top));
    this.#pan((now.x - before.x) / 2, (now.y - before.y) / 2);
  }
}

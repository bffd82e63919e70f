// Objects of every kind that JavaScript has, made when the file is loaded, and one step after another that changes them.
//
// Loaded into a machine, the objects belong to its image, which is shared and immortal; what the steps make belongs to a
// session. `act(seed)` takes one random step and answers what can be seen of everything, as text. The same file runs in
// Node: both must answer the same, however often cycles are collected and the session is frozen and thawed meanwhile.

let state = 1;
function random(below) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 0x100000000) * below);
}
const pick = (list) => list[random(list.length)];

// --- made when the file is loaded

class Point {
  #secret = 1;
  static made = 0;
  constructor(x, y) {
    this.x = x;
    this.y = y;
    Point.made++;
  }
  get sum() {
    return this.x + this.y + this.#secret;
  }
  set sum(value) {
    this.#secret = value;
  }
  keep(value) {
    this.#secret = value;
    return this;
  }
}
class Named extends Point {
  name = "named";
  toString() {
    return `${this.name}:${super.sum}`;
  }
}

function* counting(from) {
  let at = from;
  const kept = [];
  while (true) {
    const said = yield { at, kept: kept.length };
    if (said !== undefined) kept.push(said);
    if (kept.length > 5) kept.shift();
    at++;
  }
}
const released = [];
async function waiting(label) {
  const seen = [];
  for (;;) {
    const got = await new Promise((resolve) => released.push(resolve));
    seen.push(label + got);
    log.push(seen.length);
  }
}
async function* streaming() {
  for (let i = 0; ; i++) yield { i, half: "s".repeat(i % 7) };
}
function captures() {
  let count = 0;
  let held = null;
  const inner = (value) => {
    count++;
    held = value;
    return count;
  };
  return { inner, look: () => [count, held], clear: () => ((held = null), (count = -count)) };
}
function mapped(first, second) {
  // The arguments object shares its places with the parameters (sloppy mode).
  return { arguments, set: (value) => ((first = value), second), look: () => [first, second] };
}

const log = [];
const generator = counting(10);
generator.next();
const stream = streaming();
waiting("a");
waiting("b");
const symbol = Symbol("own");
const target = { hidden: 1, list: [1, 2] };
let rope = "rope";
for (let i = 0; i < 40; i++) rope += i + "-" + "r".repeat(20);
const cycle = { name: "cycle" };
cycle.self = cycle;
cycle.other = { back: cycle };

const image = {
  plain: { a: 1, b: "two", c: [1, 2, 3], d: { e: null } },
  wide: Object.fromEntries(Array.from({ length: 60 }, (_, i) => ["key" + i, i])),
  dense: Array.from({ length: 50 }, (_, i) => ({ i })),
  numbers: Array.from({ length: 100 }, (_, i) => i * 1.5),
  holes: [1, , 3, , , 6],
  map: new Map([
    ["one", 1],
    [2, { two: 2 }],
    [symbol, "symbol"],
  ]),
  set: new Set([1, "1", true]),
  weak: new WeakMap(),
  weakSet: new WeakSet(),
  point: new Point(1, 2),
  named: new Named(3, 4),
  date: new Date(86400000),
  pattern: /(\w)(\d+)/g,
  bytes: new Uint8Array(64),
  floats: new Float64Array(8),
  view: new DataView(new ArrayBuffer(32)),
  big: 123456789012345678901234567890n,
  error: new TypeError("made early"),
  bound: Point.prototype.keep.bind(new Point(5, 6), 7),
  frozen: Object.freeze({ x: 1, inner: { y: 2 } }),
  sealed: Object.seal({ x: 1 }),
  bare: Object.create(null),
  child: Object.create({ inherited: { deep: 1 } }),
  accessor: Object.defineProperty({}, "now", {
    get: () => log.length,
    configurable: true,
    enumerable: true,
  }),
  proxy: new Proxy(target, {
    get: (of, key) => (key === "hidden" ? of.hidden * 2 : Reflect.get(of, key)),
    set: (of, key, value) => ((of[key] = value), true),
    deleteProperty: (of, key) => delete of[key],
  }),
  closure: captures(),
  arguments: mapped(1, 2),
  iterator: [1, 2, 3, 4, 5, 6, 7, 8][Symbol.iterator](),
  entries: null,
  cycle,
  text: "text",
  wideText: "\u4f60\u597d" + "x".repeat(50),
  boxed: Object("boxed"),
};
image.entries = image.map.entries();
image.weak.set(image.plain, { held: "by plain" });
image.weak.set(cycle, cycle);
image.weakSet.add(image.dense);
const reference = new WeakRef(image.plain);
const registry = new FinalizationRegistry(() => {});
registry.register(image.point, "point", image.point);

// --- changed by a session

const own = { list: [], map: new Map(), last: null };
let step = 0;

/** A value of the session's, or one of the image's, or a mixture. */
function value() {
  switch (random(14)) {
    case 0:
      return random(1000);
    case 1:
      return "text" + random(50);
    case 2:
      return { fresh: random(10), within: [random(10), { more: true }] };
    case 3:
      return [random(5), "x".repeat(random(30))];
    case 4:
      return pick(Object.values(image));
    case 5:
      return own.list.length ? pick(own.list) : null;
    case 6:
      return new Point(random(9), random(9));
    case 7: {
      const made = { round: 1 };
      made.self = made;
      made.image = image.plain;
      return made;
    }
    case 8:
      return captures();
    case 9:
      return new Map([[random(9), image.dense]]);
    case 10:
      return BigInt(random(1000)) * image.big;
    case 11:
      return rope.slice(random(100), 100 + random(300));
    case 12:
      return () => image.text;
    default:
      return undefined;
  }
}
const key = () => pick(["a", "b", "c", "new" + random(20), "key" + random(70), "x"]);
const holders = [
  image.plain,
  image.wide,
  image.point,
  image.named,
  image.bare,
  image.child,
  image.accessor,
  image.proxy,
  image.cycle,
  image.pattern,
  image.date,
  image.error,
  image.boxed,
  image.closure,
  image.map,
  image.set,
  image.holes,
  image.bound,
  Point,
  Point.prototype,
  Named,
  mapped,
];

const steps = {
  setProperty() {
    pick(holders)[key()] = value();
  },
  deleteProperty() {
    delete pick(holders)[key()];
  },
  defineAccessor() {
    const held = value();
    Object.defineProperty(pick([image.plain, image.bare, image.accessor, image.wide]), key(), {
      get: () => typeof held,
      set() {},
      enumerable: true,
      configurable: true,
    });
  },
  growObject() {
    const of = pick([image.plain, image.bare, image.cycle]);
    for (let i = 0; i < 20; i++) of["grown" + random(60)] = value();
  },
  shrinkObject() {
    for (const name of Object.keys(image.wide)) if (random(3) === 0) delete image.wide[name];
  },
  refill() {
    for (let i = 0; i < 60; i++) image.wide["key" + i] ??= value();
  },
  pushDense() {
    for (let i = 0; i < 30; i++) image.dense.push({ i, v: value() });
  },
  popDense() {
    image.dense.length = Math.max(0, image.dense.length - random(40));
  },
  spliceDense() {
    image.dense.splice(random(image.dense.length + 1), random(10), value(), value());
  },
  sortNumbers() {
    image.numbers.sort((a, b) => (a % 7) - (b % 7));
    image.numbers[random(100)] = random(100);
  },
  holes() {
    image.holes[random(60)] = value();
    delete image.holes[random(60)];
    image.holes.length = Math.min(80, image.holes.length);
  },
  reverse() {
    image.dense.reverse();
    image.numbers.reverse();
  },
  mapSet() {
    for (let i = 0; i < 10; i++)
      image.map.set(pick([random(40), "k" + random(20), image.plain, own]), value());
  },
  mapDelete() {
    for (const k of [...image.map.keys()]) if (random(2)) image.map.delete(k);
  },
  mapClear() {
    if (random(4) === 0) image.map.clear();
  },
  mapIterate() {
    const next = image.entries.next();
    own.last = next.done ? "done" : typeof next.value[0];
    if (next.done) image.entries = image.map.entries();
  },
  setAdd() {
    for (let i = 0; i < 10; i++) image.set.add(pick([random(60), value()]));
  },
  setDelete() {
    for (const item of image.set) if (random(2)) image.set.delete(item);
  },
  weakSet() {
    const of = value();
    if (of !== null && typeof of === "object") {
      image.weak.set(of, value());
      image.weakSet.add(of);
      own.list.push(of);
    }
  },
  weakImage() {
    image.weak.set(pick([image.plain, cycle, image.dense]), value());
  },
  weakDelete() {
    image.weak.delete(pick([image.plain, cycle, image.dense]));
  },
  weakRead() {
    own.last = typeof image.weak.get(image.plain) + (reference.deref() === image.plain);
  },
  registry() {
    const of = {};
    registry.register(of, step);
    registry.unregister(image.point);
    new WeakRef(of);
  },
  generator() {
    const got = generator.next(value());
    own.last = got.value?.at;
  },
  release() {
    const go = released.splice(0);
    for (const resolve of go) resolve(random(10));
  },
  stream() {
    stream.next().then((got) => log.push(got.value.half));
  },
  closure() {
    image.closure.inner(value());
    if (random(5) === 0) image.closure.clear();
  },
  argumentsObject() {
    image.arguments.set(value());
    image.arguments.arguments[random(3)] = value();
  },
  privateField() {
    image.point.sum = random(100);
    image.named.keep(value());
    image.bound();
  },
  subclass() {
    image.named.name = "n" + random(9);
    own.last = String(image.named.sum);
  },
  prototype() {
    Point.prototype["added" + random(4)] = value();
  },
  changePrototype() {
    Object.setPrototypeOf(image.child, pick([null, image.plain, image.frozen, { p: value() }]));
  },
  freeze() {
    try {
      ("use strict");
      image.frozen.x = 2;
      image.sealed.x = value();
      delete image.sealed.x;
    } catch {}
  },
  bytes() {
    image.bytes.fill(random(256), random(64));
    image.bytes.set([1, 2, 3], random(60));
    image.floats[random(8)] = random(99) / 7;
  },
  view() {
    image.view.setFloat64(random(24), random(1000) / 3);
    image.view.setInt16(random(30), random(9999));
  },
  newBuffer() {
    image.bytes = Uint8Array.from({ length: 64 }, () => random(256));
  },
  bigint() {
    image.big = (image.big * BigInt(random(1000) + 1)) % 10n ** 60n;
  },
  pattern() {
    image.pattern.lastIndex = 0;
    own.last = image.text.replace(image.pattern, "$2$1") + (image.pattern.exec("a1b22")?.[0] ?? "");
  },
  rope() {
    rope = rope.length > 4000 ? rope.slice(0, 100) : rope + "r".repeat(random(40)) + random(99);
  },
  ropeRead() {
    own.last = rope.charCodeAt(random(rope.length)) + rope.indexOf("-");
  },
  wideText() {
    image.wideText = (image.wideText + pick(["a", "\u597d"])).slice(-80);
  },
  textInPlace() {
    image.text += "t" + random(9);
    if (image.text.length > 500) image.text = image.text.slice(0, 7);
  },
  date() {
    image.date.setTime(random(1e9));
  },
  error() {
    image.error.message = "m" + random(5);
    image.error.cause = value();
  },
  proxy() {
    image.proxy.list = value();
    image.proxy.hidden = random(9);
    delete image.proxy[key()];
  },
  iterator() {
    const got = image.iterator.next();
    if (got.done) image.iterator = image.numbers[Symbol.iterator]();
  },
  makeCycle() {
    const a = { of: image.plain },
      b = { a };
    a.b = b;
    if (random(3) === 0) image.cycle.other = a;
  },
  breakCycle() {
    image.cycle.other = value();
    image.cycle.self = random(2) ? image.cycle : null;
  },
  ownPush() {
    own.list.push(value());
    if (own.list.length > 40) own.list.splice(0, 20);
  },
  ownMap() {
    own.map.set(pick([image.plain, image.map, value()]), value());
    if (own.map.size > 30) own.map.clear();
  },
  swap() {
    const names = ["plain", "child", "bare"];
    const a = pick(names),
      b = pick(names);
    [image[a], image[b]] = [image[b], image[a]];
  },
  replace() {
    image[pick(["replaced", "extra" + random(9)])] = value();
  },
  names() {
    for (let i = 0; i < 20; i++) own["name" + random(200)] = i;
    for (const name of Object.keys(own)) if (random(2) && name.startsWith("name")) delete own[name];
  },
  symbols() {
    image.plain[symbol] = value();
    image.plain[Symbol.for("shared" + random(5))] = random(5);
  },
  parse() {
    own.last = JSON.parse(
      JSON.stringify({ wide: image.wide.key1 === undefined, list: [1, { a: rope.length }] }),
    );
  },
  spread() {
    own.list.push({ ...image.point, ...image.frozen }, [...image.set].length);
  },
  destructure() {
    const { a, ...rest } = image.plain;
    own.list.push(Object.keys(rest).length, typeof a);
  },
  throwing() {
    try {
      null.x;
    } catch (error) {
      own.last = error.constructor.name;
      image.error = random(3) ? image.error : new RangeError("made late");
    }
  },
  deep() {
    const down = (n) => (n ? [down(n - 1)] : value());
    own.list.push(down(20));
  },
  evaluateClass() {
    const Made = class extends Point {
      extra = value();
    };
    own.list.push(new Made(1, 2));
  },
  toggleGlobal() {
    globalThis["tortured" + random(5)] = value();
    delete globalThis["tortured" + random(5)];
  },
  iterate() {
    let n = 0;
    for (const name in image.wide) n += name.length;
    for (const item of image.dense) n += item ? 1 : 0;
    own.last = n;
  },
};
const names = Object.keys(steps);

// --- what can be seen

function show(of, depth, seen) {
  switch (typeof of) {
    case "string":
      return JSON.stringify(of.length > 60 ? of.length + of.slice(0, 20) + of.slice(-20) : of);
    case "bigint":
      return of + "n";
    case "symbol":
      return of.toString();
    case "function":
      return "f";
    case "object":
      break;
    default:
      return String(of);
  }
  if (of === null) return "null";
  const at = seen.indexOf(of);
  if (at >= 0) return "#" + at;
  seen.push(of);
  if (depth === 0) return "...";
  const inner = (part) => show(part, depth - 1, seen);
  let text = "";
  if (of instanceof Date) text += of.getTime();
  else if (of instanceof RegExp) text += of.source + of.lastIndex;
  else if (ArrayBuffer.isView(of)) return "v" + Array.from(new Uint8Array(of.buffer)).join();
  else if (of instanceof Map) for (const [k, v] of of) text += inner(k) + "=>" + inner(v) + ",";
  else if (of instanceof Set) for (const item of of) text += inner(item) + ",";
  else if (of instanceof Error) return "e" + of.name + of.message + inner(of.cause);
  if (Array.isArray(of)) text += "l" + of.length;
  for (const name of Reflect.ownKeys(of)) {
    if (name === "length") continue;
    const property = Reflect.getOwnPropertyDescriptor(of, name);
    text += String(name) + ":" + ("value" in property ? inner(property.value) : "accessor") + ",";
  }
  return "{" + text + "}";
}

function digest(text) {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return (hash >>> 0).toString(16) + ":" + text.length;
}

function act(seed) {
  state = seed >>> 0;
  random(2);
  const done = [];
  for (let i = 0; i < 3; i++) {
    const name = pick(names);
    step++;
    try {
      steps[name]();
      done.push(name);
    } catch (error) {
      done.push(name + "!" + error.name);
    }
  }
  if (log.length > 30) log.splice(0, 20);
  const seen = [];
  const all =
    show(image, 5, seen) +
    show(own, 5, seen) +
    show(log, 2, seen) +
    rope.length +
    Point.made +
    show(image.closure.look(), 3, seen) +
    show(image.arguments.look(), 3, seen);
  return done.join() + " " + digest(all);
}

module.exports = { act };

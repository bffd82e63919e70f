// Random machines, and what is seen of them: for comparing XState's own transitions with those of prelude/transitions.
//
// `generate(xstate, seed)` answers { config, implementations, events }: always the same for a seed. Everything that an
// author's code is given, and everything that it can look at, goes into a trace, as text.

function randomOf(seed) {
  let state = (seed * 2654435761) >>> 0 || 1;
  return (below) => {
    state ^= state << 13;
    state >>>= 0;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state % below;
  };
}

const EVENTS = ["A", "B", "C", "go.left", "go.right.up", "D", "unknown", "xyz.q"];

function generate(xstate, seed) {
  const {
    assign,
    raise,
    emit,
    log,
    sendTo,
    cancel,
    spawnChild,
    stopChild,
    enqueueActions,
    and,
    or,
    not,
    stateIn,
  } = xstate;
  const { fromCallback, fromPromise, setup } = xstate;
  const random = randomOf(seed);
  const chance = (percent) => random(100) < percent;
  const pick = (list) => list[random(list.length)];
  const trace = [];
  let made = 0;
  let early = 3;
  let busy = 0;
  /** Ends machines that keep themselves busy for ever, at the same moment in both ways. */
  const tick = () => {
    if (++busy > 1500) throw new Error("busy for ever");
  };

  const brief = (snapshot) =>
    snapshot && snapshot.value !== undefined
      ? JSON.stringify([
          snapshot.value,
          snapshot.context,
          snapshot.status,
          [...snapshot.tags],
          Object.keys(snapshot.children),
          snapshot._nodes.map((node) => node.id),
          snapshot.output,
          Object.entries(snapshot.historyValue).map(([id, nodes]) => [
            id,
            nodes.map((node) => node.id),
          ]),
        ])
      : JSON.stringify(snapshot ?? null);
  const told = (name, args, params) => {
    tick();
    let seen = "-";
    try {
      seen = args.self ? brief(args.self.getSnapshot()) : "-";
    } catch (error) {
      seen = error.message;
    }
    trace.push(
      `${name} ${JSON.stringify(args.context)} ${JSON.stringify(args.event, (key, value) => (value instanceof Error ? value.message : value))} ${JSON.stringify(params)} ${seen} ${Object.keys(args).sort()}`,
    );
  };

  const names = () => {
    const list = [];
    const walk = (id, node) => {
      list.push(id);
      for (const [key, child] of Object.entries(node.states ?? {})) walk(`${id}.${key}`, child);
    };
    walk("m", root);
    return list;
  };

  const throwing = chance(12);
  function action() {
    const name = `act${random(6)}`;
    switch (random(throwing ? 21 : 20)) {
      case 0:
      case 1:
      case 2: {
        const label = `inline${made++}`;
        return (args, params) => told(label, args, params);
      }
      case 3:
        return name;
      case 4:
        return { type: name, params: { n: random(5) } };
      case 5:
        return {
          type: name,
          params: ({ context, event }) => ({ count: context.count, of: event.type }),
        };
      case 6:
        return assign({ count: ({ context }) => (tick(), context.count + 1) });
      case 7:
        return assign((args) => (told("assign", args), { last: args.event.type }));
      case 8:
        return assign({
          label: `fixed${random(4)}`,
          twice: (args) => (told("assign", args), args.context.count * 2),
        });
      case 9:
        return raise({ type: pick(EVENTS), raised: true });
      case 10:
        return raise(({ context }) => ({ type: pick2(context.count), by: context.count }));
      case 11:
        return raise({ type: pick(EVENTS) }, { delay: 1 + random(30), id: `later${random(3)}` });
      case 12:
        return emit({ type: "out", n: random(9) });
      case 13:
        return emit(({ context }) => ({ type: "out", count: context.count }));
      case 14:
        return log(({ context }) => `logged ${context.count}`);
      case 15:
        return sendTo(
          ({ self }) => self,
          { type: pick(EVENTS), sent: true },
          { delay: 1 + random(20) },
        );
      case 16:
        return cancel(`later${random(3)}`);
      case 17:
        return chance(50)
          ? spawnChild(pick(["echo", "little"]), { id: `kid${random(3)}` })
          : stopChild(`kid${random(3)}`);
      case 18: {
        const inner = action(),
          other = action(),
          guard = guardOf();
        return enqueueActions((args) => {
          told("enqueue", { context: args.context, event: args.event, self: args.self });
          args.enqueue(inner);
          if (args.check(guard)) args.enqueue.assign({ last: "checked" });
          args.enqueue(other);
        });
      }
      case 19:
        return assign(({ context, spawn }) =>
          context.count % 3 === 0 && !context.kid
            ? { kid: spawn("little", { id: `spawned${context.count}` }).id }
            : {},
        );
      default:
        return () => {
          throw new Error("thrown by an action");
        };
    }
  }
  const pick2 = (n) => EVENTS[n % EVENTS.length];

  function guardOf(level = 0) {
    switch (random(level > 1 ? 5 : 9)) {
      case 0:
        return "even";
      case 1:
        return { type: "above", params: { n: random(5) } };
      case 2:
        return { type: "above", params: ({ context }) => ({ n: context.count % 4 }) };
      case 3: {
        const label = `guard${made++}`,
          m = 2 + random(3);
        return (args, params) => (told(label, args, params), args.context.count % m !== 0);
      }
      case 4:
        return "fixed";
      case 5:
        return and([guardOf(level + 1), guardOf(level + 1)]);
      case 6:
        return or([guardOf(level + 1), guardOf(level + 1)]);
      case 7:
        return not(guardOf(level + 1));
      default:
        return stateIn(`#m${chance(50) ? "" : ".s0"}`);
    }
  }

  const some = (most, make) => Array.from({ length: random(most + 1) }, make);

  function node(level) {
    const config = {};
    if (chance(30)) config.entry = some(2, action);
    if (chance(30)) config.exit = some(2, action);
    if (chance(25)) config.tags = some(2, () => `tag${random(4)}`);
    if (chance(10)) config.meta = { m: random(9) };
    if (chance(12)) {
      config.invoke = { src: pick(["echo", "little", "soon", "fails"]), id: `invoked${made++}` };
      if (chance(60)) config.invoke.onDone = [];
      if (chance(40))
        config.entry = [
          ...(config.entry ?? []),
          sendTo(config.invoke.id, { type: "D", early: true }),
        ];
      if (chance(60)) config.invoke.onError = [];
      if (chance(30)) config.invoke.onSnapshot = { actions: action() };
    }
    const wants = level === 0 ? 100 : level < 3 ? 45 : 0;
    if (chance(wants)) {
      config.states = {};
      const count = 2 + random(level === 0 ? 3 : 2);
      for (let i = 0; i < count; i++) config.states[`s${i}`] = node(level + 1);
      if (chance(40)) {
        config.type = "parallel";
        if (chance(15)) config.states.end = { type: "final" };
      } else {
        if (chance(35))
          config.states.end = {
            type: "final",
            ...(chance(40) ? { output: ({ context }) => ({ at: context.count }) } : {}),
            entry: some(1, action),
          };
        if (chance(25))
          config.states.past = {
            type: "history",
            ...(chance(50) ? { history: "deep" } : {}),
            ...(chance(40) ? { target: "s1" } : {}),
          };
        const begins = config.states.end && chance(35) ? "end" : `s${random(count)}`;
        config.initial = chance(20) ? { target: begins, actions: some(2, action) } : begins;
      }
      if (chance(25)) config.onDone = { actions: some(1, action) };
    }
    return config;
  }

  const root = node(0);
  root.id = "m";
  delete root.invoke;
  if (chance(30)) root.output = ({ context, event }) => ({ total: context.count, by: event.type });
  const all = names();

  function transition(always) {
    const one = {};
    if (always && chance(15)) return { guard: "even" }; // does nothing, and so happens once
    if (chance(always ? 85 : 75)) {
      one.target = chance(8) ? [`#${pick(all)}`] : `#${pick(all)}`;
      if (chance(20)) one.reenter = true;
    }
    if (chance(50)) one.actions = some(3, action);
    if (always || chance(35))
      one.guard = always ? { type: "above", params: { n: 1 + random(6) } } : guardOf();
    if (always)
      one.actions = [
        ...(one.actions ?? []),
        assign({ count: ({ context }) => (tick(), context.count > 40 ? 0 : context.count - 2) }),
      ];
    return one;
  }
  const several = () => (chance(25) ? some(3, () => transition(false)) : transition(false));
  function connect(config) {
    if (config.type === "history") return;
    if (config.type !== "final") {
      config.on = {};
      for (const type of EVENTS.slice(0, 5)) if (chance(40)) config.on[type] = several();
      if (chance(12)) config.on["*"] = several();
      if (chance(12)) config.on["go.*"] = several();
      if (chance(4)) config.on.A = undefined;
      if (chance(10)) config.always = transition(true);
      if (chance(15))
        config.after = {
          [5 + random(20)]: several(),
          ...(chance(30) ? { wait: transition(false) } : {}),
        };
      if (config.onDone && chance(60)) Object.assign(config.onDone, transition(false));
      if (config.invoke?.onDone) config.invoke.onDone = transition(false);
      if (config.invoke?.onError) config.invoke.onError = transition(false);
    }
    for (const child of Object.values(config.states ?? {})) connect(child);
  }
  connect(root);
  // What a machine of a random shape must not have: the default of a history that stands in no compound state, and so on,
  // is refused by XState itself, for both.

  const actions = {};
  for (let i = 0; i < 5; i++) {
    const name = `act${i}`; // act5 is not implemented
    actions[name] = chance(25) ? action() : (args, params) => told(name, args, params);
  }
  const little = setup({}).createMachine({
    id: "little",
    initial: "x",
    context: { seen: 0 },
    states: {
      x: {
        on: { "*": { actions: assign({ seen: ({ context }) => context.seen + 1 }) } },
        after: { 12: "y" },
      },
      y: { type: "final" },
    },
    output: ({ context }) => context.seen,
  });
  const machine = setup({
    actions,
    guards: {
      even: (args, params) => (told("even", args, params), args.context.count % 2 === 0),
      above: (args, params) => args.context.count > (params?.n ?? 0),
      fixed: not("even"),
    },
    delays: { wait: ({ context }) => tick() ?? Math.max(1, 3 + context.count) },
    actors: {
      echo: fromCallback(({ sendBack, receive }) => {
        tick();
        receive((event) => sendBack({ type: "D", echoed: event.type }));
        if (seed % 3 === 0 && early-- > 0) sendBack({ type: "C", early: true });
        return () => trace.push("echo stopped");
      }),
      little,
      soon: fromPromise(async () => 7),
      fails: fromPromise(async () => {
        throw new Error("failed");
      }),
    },
  }).createMachine(
    chance(50)
      ? {
          ...root,
          context: ({ input, spawn }) => ({
            count: input?.n ?? 0,
            ...(seed % 5 === 0 ? { kid: spawn("little", { id: "born" }).id } : {}),
          }),
        }
      : { ...root, context: { count: 0 } },
  );
  machine.options.maxIterations = 60;
  const { transition: transitioned } = machine;
  machine.transition = (...all) => (tick(), transitioned(...all));
  const events = Array.from({ length: 14 }, () =>
    chance(20) ? { wait: random(25) } : { type: pick(EVENTS), n: random(9) },
  );
  return { machine, events, trace, brief, input: { n: random(4) } };
}

module.exports = { generate };

"""The module that `xstate sky` writes into an app: the machine, for replicas of it.

It has to compile against XState 5.0.0-beta.37, which Stately's published clients bring along, and
against XState 5. The version's own source does, if it is one file that imports XState alone, after
a few rewritings. What cannot be had that way is made from the version's definition, which has no
code: what was left out stands at the top, where who generates the file reads it.
"""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from machinehub.protocols.sky.snapshots import nodes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

BETA: Final = "5.0.0-beta.37"
BETA_EXPORTS: Final = frozenset(
    """
    Actor ActorStatus InterpreterStatus SimulatedClock SpecialTargets State StateMachine StateNode
    and assign cancel choose createActor createEmptyActor createMachine escalate forwardTo
    fromCallback fromEventObservable fromObservable fromPromise fromTransition getStateNodes
    interpret log mapState matchesState not or pathToStateValue pure raise sendParent sendTo
    stateIn stop toObserver waitFor
    """.split()  # noqa: SIM905 - it is read, not written
)
"""What its module `xstate` exports, types aside."""
SHIMS: Final = {
    "setup": """\
const setup = <C, E>({ types, ...implementations }: { types?: { context?: C; events?: E } } & Record<string, any>) => ({
  createMachine: (config: any): ReturnType<typeof plainMachine<C, E>> =>
    plainMachine({ types, ...config } as any, implementations as any) as any,
});""",  # noqa: E501 - it is formatted where it is written to
    "emit": """\
// Replicas emit nothing: what the machine emits, its session on the hub does.
const emit = (..._: any[]) => () => {};""",
    "assertEvent": """\
const assertEvent = (event: { type: string }, type: string | readonly string[]): void => {
  if (![type].flat().includes(event.type)) throw new Error(`unexpected event ${event.type}`);
};""",
}
"""What it lacks, and what stands in for it."""
SCRIPTS: Final = frozenset({".ts", ".tsx", ".mts", ".js", ".mjs"})

TIMERS: Final = """\

// Delays are the hub's: it says when one is over, to everybody at once.
for (const nodes: any[] = [(machine as any).root]; nodes.length; ) {
  const node = nodes.pop();
  nodes.push(...Object.values(node.states));
  for (const action of node.entry) {
    const delays = action.type === "xstate.raise" && String(action.id).startsWith("xstate.after");
    if (delays) action.delay = 2 ** 31 - 1;
  }
}
"""
_IMPORT: Final = re.compile(r"^import\b", re.MULTILINE)
_ANY_IMPORT: Final = re.compile(r"^\s*(?:/\*.*?\*/\s*)?import\b(?!\s*\()", re.MULTILINE)
_PARAMS: Final = re.compile(r"\bparams\b")
_FAILS: Final = re.compile(r"\bonError\b")
_ERROR: Final = re.compile(r"\berror\b")
_QUOTE: Final = re.compile(r"""["']""")
_ENDS: Final = re.compile(r"[ \t]*;?")
_NAMED: Final = re.compile(r"(?:type\s+)?([\w$]+)(?:\s+as\s+([\w$]+))?")
_MACHINE: Final = re.compile(r"^export\s+(?:const|let|var)\s+machine\b", re.MULTILINE)
_TAKEN: Final = re.compile(r"^(?:const|let|var|function|class)\s+machine\b", re.MULTILINE)
_DEFAULT: Final = re.compile(r"^export\s+default\s+", re.MULTILINE)
_DEFAULT_NAME: Final = re.compile(r"^export\s+default\s+([\w$]+)[ \t]*;?[ \t]*$", re.MULTILINE)
_EXPORTED: Final = re.compile(r"^export\s+(?:const|let|var)\s+([\w$]+)", re.MULTILINE)
_MADE: Final = re.compile(
    r"^export\s+(?:const|let|var)\s+([\w$]+)(?:\s*:[^=\n]*)?\s*=\s*"
    r"(?:createMachine|setup|[\w$]+\.createMachine)\s*\(",
    re.MULTILINE,
)
_MORE_OF_SETUP: Final = re.compile(r"\.(?:extend|createStateConfig|createAction)\(")
_OTHER_EXPORT: Final = re.compile(r"^export\s*(?:\{|\*|=)", re.MULTILINE)
RULES: Final = frozenset({"access", "view", "viewEmitted"})
"""Exports that are the hub's."""


OF_DELAYS: Final = frozenset({"xstate.raise", "xstate.cancel"})
"""Actions that XState itself adds to a state with delayed transitions."""


class CannotRewrite(Exception):
    """`str` says why the source itself cannot be used."""


class Machine(NamedTuple):
    """A version, as it was deployed."""

    name: str
    version: int
    entry: str
    files: dict[str, str]
    definition: dict[str, Any]


def module_of(machine: Machine) -> str:
    """TypeScript with a top-level `const machine`."""
    try:
        return _head(machine, []) + _rewritten(machine) + _timers_of(machine)
    except CannotRewrite as error:
        left_out: list[str] = []
        config = _config_of(machine.definition, left_out)
        head = _head(machine, [f"Made from the definition alone: {error}.", *left_out])
        return head + _machine_of(config) + _timers_of(machine)


def _timers_of(machine: Machine) -> str:
    has_delays = any(
        each.get("kind") == "after"
        for node in nodes_of(machine.definition)
        for each in node.get("transitions", [])
    )
    return TIMERS if has_delays else ""


def _head(machine: Machine, said: list[str]) -> str:
    lines = [f"Version {machine.version} of {machine.name}, deployed on a machinehub.", *said]
    comments = "".join(f"// {' '.join(line.split())}\n" for line in lines)
    # Types are checked where the machine is written, against the XState that it is written for.
    return f"// @ts-nocheck\n{comments}"


# --- from the source ------------------------------------------------------------------------------


def _rewritten(machine: Machine) -> str:
    """Raises `CannotRewrite`."""
    suffix = PurePosixPath(machine.entry).suffix
    source = machine.files[machine.entry]
    if suffix == ".json":
        return _machine_of(json.loads(source))
    if suffix not in SCRIPTS:
        raise CannotRewrite(f"{machine.entry} is no script")
    if len(machine.files) > 1:
        raise CannotRewrite(f"the machine is made of {len(machine.files)} files")
    source = source.removeprefix("\ufeff").replace("\r\n", "\n")
    _check_features(source)
    imports = list(_imports(source))
    names = _imported(imports)
    rest = _without(source, imports)
    if _ANY_IMPORT.search(rest):
        raise CannotRewrite("it has imports that do not begin a line")
    shims = [SHIMS[name] for name in names if name in SHIMS]
    if "setup" in names:
        names |= {"createMachine as plainMachine": "createMachine as plainMachine"}
    kept = sorted(_spelled(name, local) for name, local in names.items() if name not in SHIMS)
    head = f'import {{ {", ".join(kept)} }} from "xstate";\n' if kept else ""
    body = _with_machine(rest.strip())
    return "\n".join([head, *shims, body]) + "\n"


def _check_features(source: str) -> None:
    """What XState's early version would run, and come to something else."""
    if _MORE_OF_SETUP.search(source):
        raise CannotRewrite(f"it uses more of setup() than XState {BETA} can be given")
    if _PARAMS.search(source):
        raise CannotRewrite(f"XState {BETA} gives actions and guards no params")
    if _FAILS.search(source) and _ERROR.search(source):
        raise CannotRewrite(f"XState {BETA} calls the error of onError otherwise")


def _spelled(name: str, local: str) -> str:
    return name if name == local else f"{name} as {local}"


class Import(NamedTuple):
    start: int
    end: int
    what: str
    """Between `import` and `from`."""
    module: str


def _imports(source: str) -> Iterator[Import]:
    """The statements that begin a line. Each is looked at once, however many there are."""
    quote: re.Match[str] | None = None
    end = 0
    for found in _IMPORT.finditer(source):
        if found.start() < end:
            continue  # in a text behind an import
        _check_outside(source, found.start())
        if quote is None or quote.start() < found.end():
            quote = _QUOTE.search(source, found.end())
        closing = source.find(quote[0], quote.end()) if quote is not None else -1
        if quote is None or closing < 0:
            raise CannotRewrite("it imports something that cannot be read")
        what = source[found.end() : quote.start()].strip()
        ends = _ENDS.match(source, closing + 1)
        assert ends is not None
        end = ends.end()
        module = source[quote.end() : closing]
        yield Import(found.start(), end, what.removesuffix("from").strip(), module)


def _check_outside(source: str, at: int) -> None:
    """That what seems to be a statement stands in no template literal."""
    if source.count("`", 0, at) % 2:
        raise CannotRewrite("a template literal has lines that look like statements")


def _without(source: str, imports: list[Import]) -> str:
    kept, at = [], 0
    for each in imports:
        kept.append(source[at : each.start])
        at = each.end
    return "".join([*kept, source[at:]])


def _imported(imports: list[Import]) -> dict[str, str]:
    """What is imported from XState, by which name here."""
    names: dict[str, str] = {}
    for _, _, what, module in imports:
        is_type = re.match(r"type\s", what) is not None
        if module != "xstate":
            if is_type:
                raise CannotRewrite(f"it takes types from {module[:100]!r}")
            raise CannotRewrite(f"it imports {module[:100]!r}")
        listed = re.fullmatch(r"(?:type\s+)?\{(?P<names>[^{}]*)\}", what)
        if listed is None:
            raise CannotRewrite("it imports xstate otherwise than by names")
        for each in filter(None, (part.strip() for part in listed["names"].split(","))):
            _import(names, each, is_type=is_type or each.startswith("type "))
    return names


def _import(names: dict[str, str], text: str, *, is_type: bool) -> None:
    found = _NAMED.fullmatch(text)
    if found is None:
        raise CannotRewrite("it imports xstate otherwise than by names")
    name, local = found[1], found[2] or found[1]
    if is_type or (name not in BETA_EXPORTS and name[0].isupper()):
        names[f"type {name}"] = f"type {name}" if name == local else local
    elif name in BETA_EXPORTS or (name in SHIMS and name == local):
        names[name] = local
    else:
        raise CannotRewrite(f"XState {BETA} has no {name}()")


def _with_machine(body: str) -> str:
    """With the machine as a constant of that name: the default export, else the export `machine`,
    else the only one.
    """
    if _OTHER_EXPORT.search(body):
        raise CannotRewrite("it exports its machine in a list")
    found = _DEFAULT.search(body) or _MACHINE.search(body)
    if found is not None:
        _check_outside(body, found.start())
    named = _DEFAULT_NAME.search(body)
    if named is not None and named[1] == "machine":
        return _DEFAULT_NAME.sub("", body).strip()
    is_taken = _TAKEN.search(body) is not None
    if _MACHINE.search(body):
        if _DEFAULT.search(body):
            raise CannotRewrite("its default export is another than its constant machine")
        return body
    if is_taken:
        raise CannotRewrite("it calls something else machine")
    if _DEFAULT.search(body):
        return _DEFAULT.sub("const machine = ", body, count=1)
    exported = [name for name in _EXPORTED.findall(body) if name not in RULES]
    if len(exported) != 1 or _MADE.findall(body) != exported:
        raise CannotRewrite("it is not plain which of its exports is the machine")
    return f"{body}\n\nconst machine = {exported[0]};"


# --- from the definition --------------------------------------------------------------------------


def _machine_of(config: Any) -> str:
    text = json.dumps(config, indent=2, ensure_ascii=False)
    return f'import {{ createMachine }} from "xstate";\n\nconst machine = createMachine({text});\n'


def _config_of(definition: dict[str, Any], left_out: list[str]) -> dict[str, Any]:
    """States and transitions. What has code is not there, and is named in `left_out`."""
    actions: set[str] = set()
    guards: set[str] = set()
    actors: set[str] = set()
    config = _node(definition["root"], actions, guards, actors)
    config["id"] = definition.get("id", "machine")
    if definition.get("context") is not None:
        config["context"] = definition["context"]
    for kind, names in (("Actions", actions), ("Actors", actors)):
        if names:
            left_out.append(f"{kind} left out: {', '.join(sorted(names))}.")
    if guards:
        left_out.append(f"Guards, whose transitions are left out: {', '.join(sorted(guards))}.")
    return config


def _node(
    node: dict[str, Any], actions: set[str], guards: set[str], actors: set[str]
) -> dict[str, Any]:
    made: dict[str, Any] = {"id": node["id"]}
    if node.get("type") in ("parallel", "final", "history"):
        made["type"] = node["type"]
    for name in ("description", "tags", "meta", "history"):
        if name in node:
            made[name] = node[name]
    actions.update(_own_actions(node))
    actors.update(each.get("src", "inline") for each in node.get("invoke", []))
    states = node.get("states", {})
    for key, child in states.items():
        if child["id"] == node.get("initial"):
            made["initial"] = key
    for where, name, transition in _transitions(node):
        actions.update(transition.get("actions", []))
        if "guard" in transition:
            guards.add(transition["guard"])
            continue
        target: dict[str, Any] = {}
        if "targets" in transition:
            target["target"] = [f"#{each}" for each in transition["targets"]]
        if transition.get("reenter"):
            target["reenter"] = True
        if where == "always":
            made.setdefault("always", []).append(target)
        else:
            made.setdefault(where, {}).setdefault(name, []).append(target)
    if states:
        made["states"] = {
            key: _node(child, actions, guards, actors) for key, child in states.items()
        }
    return made


def _own_actions(node: dict[str, Any]) -> set[str]:
    """What a state does when it is entered or left."""
    own = {*node.get("entry", []), *node.get("exit", [])}
    has_delays = any(each.get("kind") == "after" for each in node.get("transitions", []))
    return own - OF_DELAYS if has_delays else own


def _transitions(node: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Where each stands in a state, and under which name there."""
    for each in node.get("transitions", []):
        match each.get("kind"):
            case "always":
                yield "always", "", each
            case "after":
                yield "after", str(each.get("delayMs", each.get("delay"))), each
            case "event":
                yield "on", each["event"], each

"""The documents, held against the code: what exists is written down, what is written down
exists.
"""

from __future__ import annotations

import re

import pytest
from typer.main import get_command

from machinehub.cli.main import app
from machinehub.closecodes import CloseCode
from machinehub.limits import Limits
from machinehub.session.decide.lifecycle import MOVES, TRANSITIONS
from machinehub.settings import PREFIX, Settings
from sandbox.forge import GUEST_TWINS
from sandbox.protocol.limits import GuestLimits
from tests.support import ROOT

pytestmark = pytest.mark.core
DOCS = ROOT / "docs"


def test_every_setting_is_in_the_docs() -> None:
    text = (DOCS / "settings.md").read_text()
    for name in Settings.__dataclass_fields__:
        assert name == "limits" or f"`{PREFIX}{name.upper()}`" in text, name


def test_every_limit_is_in_the_docs_with_its_number() -> None:
    text = (DOCS / "limits.md").read_text()
    for name in Limits.__struct_fields__:
        assert f"| `{name}` | {getattr(Limits(), name)} |" in text, name


def test_the_guests_limits_are_the_hubs() -> None:
    text = (ROOT / "sandbox" / "guest" / "prelude" / "turn.ts").read_text()
    for name, twin in GUEST_TWINS.items():
        found = re.search(rf"\b{twin}: ([\d* ]+),", text)
        assert found is not None, twin
        number = 1
        for factor in found[1].split("*"):
            number *= int(factor)
        assert number == getattr(GuestLimits(), name), name
        assert number == getattr(Limits(), name, number), name


def test_every_error_code_is_in_the_docs() -> None:
    text = (DOCS / "errors.md").read_text()
    kinds = "BadRequest|Unauthorised|Forbidden|NotFound|WaitTimeout|Conflict|PreconditionFailed|TooLarge|RateLimited|Unavailable|MethodNotAllowed|BuildFailedError|BuildError|Trap|Fault|error_frame"
    python = "\n".join(
        path.read_text()
        for folder in ("machinehub", "sandbox")
        for path in (ROOT / folder).rglob("*.py")
        if "node_modules" not in path.parts
    )
    guest = "\n".join(
        path.read_text() for path in (ROOT / "sandbox" / "guest" / "prelude").glob("*.ts")
    )
    codes = set(re.findall(rf'\b(?:{kinds})\(\s*"([a-z0-9_]+)"', python)) | set(
        re.findall(r'\b(?:reject|rejectThrown|failure)\("([a-z_]+)"', guest)
    )
    assert len(codes) > 40
    assert {code for code in codes if f"`{code}`" not in text} == set()


def test_every_command_is_in_the_docs() -> None:
    text = (DOCS / "cli.md").read_text()
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert re.search(rf"`(?:machinehub )?{name}\b", text), name


def test_the_architecture_names_every_room() -> None:
    text = (DOCS / "architecture.md").read_text()
    for path in (ROOT / "machinehub").iterdir():
        if path.suffix == ".py" and path.name not in (
            "__init__.py",
            "logs.py",
            "logging.py",
            "metrics.py",
            "paths.py",
            "tasks.py",
        ):
            assert path.name in text, path.name
        if path.is_dir() and path.name != "__pycache__":
            assert f"machinehub/{path.name}/" in text, path.name
    for path in (ROOT / "sandbox").glob("*.py"):
        assert path.name == "__init__.py" or path.name in text, path.name


def test_the_lifecycles_are_drawn_as_they_are() -> None:
    """The drawings of the architecture are the tables that the code moves through."""
    text = (DOCS / "architecture.md").read_text()
    arrows = re.compile(r"^  (\w+) --> (\w+): (.+)$", re.MULTILINE)
    phases, stages = (
        {(before.replace("_", " "), after.replace("_", " "), step) for before, after, step in found}
        for drawing in re.findall(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
        if (found := arrows.findall(drawing))
    )
    assert phases == {
        (phase.label, following.label, step.value)
        for phase, steps in TRANSITIONS.items()
        for step, following in steps.items()
    }
    assert stages == {
        (stage.value, following.value, move.value)
        for stage, moves in MOVES.items()
        for move, following in moves.items()
    }


def test_every_close_code_is_in_the_docs() -> None:
    text = (DOCS / "protocol.md").read_text()
    for code in CloseCode:
        assert re.search(rf"\b{code.value}\b", text), code


def test_every_decision_is_listed() -> None:
    listed = (DOCS / "decisions" / "README.md").read_text()
    records = sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.md"))
    assert re.findall(r"\]\(([^)]+)\)", listed) == records
    for name in records:
        text = (DOCS / "decisions" / name).read_text()
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
        ], name


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), ROOT / "clients/js/README.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert target.startswith("http") or (document.parent / target).exists(), (
                f"{document.name}: {target}"
            )


def test_each_promise_names_its_test() -> None:
    """Every test that security.md names exists, and every row of what strangers try is there."""
    text = (DOCS / "security.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 60
    for file, test in named:
        assert re.search(
            rf"^(async )?def {test}\(", (ROOT / "tests" / file).read_text(), re.MULTILINE
        ), f"{file}::{test}"
    assert re.findall(r"^\| (\d+) \|", text, re.MULTILINE) == [str(row) for row in range(1, 26)]


def test_examples_say_what_they_are() -> None:
    examples = sorted((ROOT / "examples").glob("*.ts"))
    assert len(examples) >= 10
    assert all(path.read_text().startswith("// ") for path in examples)


def test_the_guide_to_effects_shows_the_example() -> None:
    text = (DOCS / "effects.md").read_text()
    for path in (ROOT / "examples" / "shop").iterdir():
        if path.suffix in (".ts", ".toml", ".py"):
            assert f"\n{path.read_text().strip()}\n```\n" in text, path.name

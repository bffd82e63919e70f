"""Chromium, driven by Playwright: the page and the example apps are tested in it, and `make
screenshots` looks at them.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any, Final

from playwright.async_api import async_playwright, expect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from playwright.async_api import Browser

FLAGS: Final = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


# This bounds a test that would hang; nothing is concluded from how long a page takes.
expect.set_options(timeout=60_000)


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    program = shutil.which("chromium")
    assert program, "the page is tested in Chromium: apt-get install chromium"
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


def sixty_states() -> str:
    """The source of a machine with 60 states: six phases, one of them parallel, with ways forward,
    back and out.
    """
    phases = ["intake", "checks", "payment", "packing", "shipping", "aftercare"]
    steps = [
        "queued",
        "assigned",
        "started",
        "waiting",
        "reviewed",
        "blocked",
        "resumed",
        "signed",
        "finished",
    ]
    states: dict[str, object] = {}
    for number, phase in enumerate(phases):
        inner: dict[str, Any] = {}
        for at, step in enumerate(steps):
            on: dict[str, object] = {"NEXT": steps[at + 1]} if at + 1 < len(steps) else {}
            if step == "waiting":
                on["BLOCK"] = "blocked"
            if step == "blocked":
                on = {"RESUME": "resumed"}
            if step == "reviewed":
                on |= {"REJECT": {"target": "assigned", "guard": "mayReject", "actions": "note"}}
            inner[step] = (
                {"on": on, "tags": [phase] if at == 0 else []}
                if step != "finished"
                else {"type": "final"}
            )
        if phase == "checks":  # two regions, one after the other's steps
            halves = (steps[:4], steps[4:])
            inner = {
                f"{phase}-{half[0]}": {
                    "initial": half[0],
                    "states": {step: inner[step] for step in half},
                }
                for half in halves
            }
            for half in inner.values():
                for state in half["states"].values():
                    state["on"] = {
                        event: target
                        for event, target in state.get("on", {}).items()
                        if (target if isinstance(target, str) else target["target"])
                        in half["states"]
                    }
        states[phase] = {
            **({"type": "parallel"} if phase == "checks" else {"initial": "queued"}),
            "states": inner,
            "onDone": phases[number + 1] if number + 1 < len(phases) else "closed",
            "on": {"CANCEL": "cancelled"},
            "description": f"The {phase} of an order",
        }
    states |= {
        "closed": {"type": "final"},
        "cancelled": {"on": {"REOPEN": "intake"}, "after": {"60000": "closed"}},
    }
    import json

    config = {
        "id": "fulfilment",
        "initial": "intake",
        "context": {"steps": 0, "notes": []},
        "states": states,
        "on": {"TICK": {"actions": "count"}},
    }
    return f"""import {{ assign, setup }} from "xstate";
export default setup({{
  guards: {{ mayReject: () => true }},
  actions: {{ note: assign({{ notes: ({{ context }}) => [...context.notes, "rejected"] }}), count: assign({{ steps: ({{ context }}) => context.steps + 1 }}) }},
}}).createMachine({json.dumps(config)});
"""

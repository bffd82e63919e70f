"""The wheel's build hook: builds the guest and the page with Node, so that whoever installs the
wheel needs none. `make wheel` has built them before, and says so with MACHINEHUB_BUILT=1.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

BUILT = (
    "sandbox/guest/dist/base.wasm",
    "machinehub/web/static/index.html",
    "machinehub/legal/sbom.cdx.json",
)


class GuestHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's
        if version == "editable":
            return  # `make setup` builds them in the checkout
        root = Path(self.root)
        if not os.environ.get("MACHINEHUB_BUILT"):
            _build(root)
        if missing := [name for name in BUILT if not (root / name).exists()]:
            raise RuntimeError(f"not built: {', '.join(missing)}")


def _build(root: Path) -> None:
    guest = root / "sandbox" / "guest"
    install = ["npm", "ci", "--no-audit", "--no-fund"]
    build = ["npm", "run", "build"]
    subprocess.run(install, cwd=guest, check=True)
    subprocess.run([sys.executable, "-m", "sandbox.guest.engine"], cwd=root, check=True)
    subprocess.run(build, cwd=guest, check=True)
    subprocess.run([sys.executable, "-m", "sandbox.guest"], cwd=root, check=True)
    subprocess.run(install, cwd=root, check=True)
    for package in ("js", "page"):
        subprocess.run(build, cwd=root / "clients" / package, check=True)
    subprocess.run([sys.executable, "supply.py"], cwd=root, check=True)

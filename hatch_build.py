"""The wheel's build hook: builds the guest and the page with Node, so that installing the wheel
needs none.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GuestHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return  # `make setup` builds them in the checkout
        guest = Path(self.root) / "sandbox" / "guest"
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=guest, check=True)
        subprocess.run(["npm", "run", "build"], cwd=guest, check=True)
        subprocess.run([sys.executable, "-m", "sandbox.guest"], cwd=self.root, check=True)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=self.root, check=True)
        for package in ("js", "page"):
            subprocess.run(
                ["npm", "run", "build"], cwd=Path(self.root) / "clients" / package, check=True
            )

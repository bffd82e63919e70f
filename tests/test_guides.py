"""The guides, as somebody follows them: every file that they show is written, every command is run,
and its output compared with what stands there.

In a ```console block a line behind `$` is a command, and the lines behind that its output, of which
other lines may be left out; `...` stands for anything. `machinehub dev` and `serve` go on running.
A code block whose first line names a file is that file; JSON with a name and dependencies is a
package.json.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import CACHE, ROOT, free_port

GUIDES = (
    "tutorial.md",
    "concepts.md",
    "npm.md",
    "testing.md",
    "faq.md",
    "access.md",
    "effects.md",
    "stately-sky.md",
)
PATIENCE_S = 60
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^(?://|#|<!--) (\S+\.\w+)(: instead of `(\w+)`)?(?: -->)?$")
_STARTS = re.compile(r"^machinehub (?:dev|serve)\b")


class Reader:
    """Somebody at a terminal, in an empty folder; and a second terminal for what goes on running."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.folder = folder
        self.port = port
        self.running: subprocess.Popen[str] | None = None
        self.output = folder.parent / "running.txt"
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder.parent),
            "LANG": "C.UTF-8",
            "COLUMNS": "250",
            "MACHINEHUB_CACHE": str(CACHE),
            "MACHINEHUB_PORT": str(port),
            "MACHINEHUB_SERVER": f"http://127.0.0.1:{port}",
            **{key: os.environ[key] for key in os.environ if key.lower().startswith("npm_config")},
        }

    def read(self, text: str) -> None:
        for language, block in _BLOCK.findall(text):
            if language == "console":
                self.console(block)
            elif language == "json" and '"dependencies"' in block:
                self.write("package.json", block, None)
            elif (named := _FILE.match(block.splitlines()[0])) is not None:
                self.write(named[1], block.split("\n", 1)[1], named[3])

    def write(self, name: str, content: str, instead_of: str | None) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if instead_of is not None:  # a state, as it is indented there
            known = path.read_text()
            old = re.compile(rf"^    {instead_of}: {{\n.*?^    }},\n", re.MULTILINE | re.DOTALL)
            content, count = old.subn(lambda _: content, known)
            assert count == 1, f"{name} has no {instead_of}"
        deployments = self.said("version ")
        path.write_text(content)
        if self.running is not None and instead_of is not None:
            self.until(lambda: self.said("version ") > deployments, f"{name} was deployed again")

    def console(self, block: str) -> None:
        lines = block.splitlines()
        at = 0
        while at < len(lines):
            assert lines[at].startswith("$ "), f"no command: {lines[at]}"
            command = lines[at].removeprefix("$ ").split("   #")[0]
            end = next(
                (n for n in range(at + 1, len(lines)) if lines[n].startswith("$ ")), len(lines)
            )
            self.run(command, lines[at + 1 : end])
            at = end

    def run(self, command: str, expected: list[str]) -> None:
        # A hub for everybody's addresses is one for this computer's, here.
        command = command.replace("127.0.0.1:8787", f"127.0.0.1:{self.port}")
        command = command.replace("--host 0.0.0.0", "--host 127.0.0.1")
        if _STARTS.match(command):
            self.start(command)
            return
        after = self.folder.parent / "after"
        script = f"{command}\nstatus=$?; pwd > {after}; env -0 >> {after}; exit $status"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        if after.exists():
            place, _, variables = after.read_text().partition("\n")
            self.folder = Path(place)
            self.environment = dict(
                each.split("=", 1) for each in variables.split("\0") if "=" in each
            )
        said = done.stdout.splitlines()
        assert done.returncode == 0 or "warning" in "".join(expected), f"{command}: {done.stdout}"
        for line in expected:
            if line.strip() == "...":
                continue
            pattern = re.compile(re.escape(line.rstrip()).replace(r"\.\.\.", ".*"))
            found = next(
                (n for n, each in enumerate(said) if pattern.fullmatch(each.rstrip())), None
            )
            assert found is not None, f"{command}: no line {line!r} in\n" + "\n".join(said)
            said = said[found + 1 :]

    def start(self, command: str) -> None:
        self.stop()
        with self.output.open("w") as output:
            self.running = subprocess.Popen(
                command.split(),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self.until(lambda: self.said("http://") > 0, f"{command} is there")

    def said(self, text: str) -> int:
        return self.output.read_text().count(text) if self.output.exists() else 0

    def until(self, holds: object, what: str) -> None:
        assert callable(holds)
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{what} did not come true: {self.output.read_text()}"
            assert self.running is None or self.running.poll() is None, self.output.read_text()
            time.sleep(0.05)

    def stop(self) -> None:
        if self.running is not None:
            self.running.send_signal(signal.SIGINT)
            self.running.wait(30)
            self.running = None

    def leave(self) -> None:
        """Ends what goes on running beside."""
        self.stop()
        for file in self.folder.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("guide", GUIDES)
def test_a_guide_can_be_followed(guide: str, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    reader = Reader(folder)
    try:
        reader.read((ROOT / "docs" / guide).read_text())
    finally:
        reader.leave()
